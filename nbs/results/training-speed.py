"""Training speed, one change a row, as a share of the machine's own matrix product.

    python nbs/results/training-speed.py [--presets mini piny] [--rows NAME …] [--rounds 5]
                                         [--device cuda] [--out NAME]

Writes `training-speed.json` beside itself, or another file.

Each row is a process of its own. Rows take turns, up to five at a time (a row of piny holds
3 GiB): one step each, then the next round. Right before and after a step the process
multiplies two matrices, float32 of 2048 x 2048 (on CUDA bfloat16 of 8192 x 8192): that is
the ceiling. `transformers`' Trainer needs `pip install accelerate`.

A step is 4,096 tokens, 8 windows of 512: forward, backward, clipping, optimizer. The card's
step is 64 times as large, and its optimizer weighs that much less.
"""
import argparse
import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _processor import processor

HERE = Path(__file__).resolve().parent
ROWS = {  # name: what is on
    'plain loop': {},
    'plain loop, compiled': dict(compile=True),
    "transformers' Trainer": dict(peer=True),
    "transformers' Trainer, compiled": dict(peer=True, compile=True),
    'kept memory': dict(kept=True),
    '+ chunked cross-entropy': dict(kept=True, loss='ours'),
    "+ torch's linear_cross_entropy instead": dict(kept=True, loss='torch'),
    '+ fused AdamW': dict(kept=True, loss='ours', fused=True),
    '+ attention inside stories': dict(kept=True, loss='ours', fused=True, stories=True),
    'this trainer': dict(trainer={}),
    'this trainer, Muon': dict(trainer=dict(optimizer='muon')),
    'this trainer, compiled': dict(trainer=dict(compile='on')),
    'this trainer, one thread': dict(trainer={}, threads=1),
    'this trainer, bfloat16': dict(trainer=dict(dtype='bfloat16')),
    'this trainer, Muon, bfloat16': dict(trainer=dict(optimizer='muon', dtype='bfloat16')),
    'this trainer, bfloat16, compiled': dict(trainer=dict(dtype='bfloat16', compile='on')),
}
WINDOWS, LENGTH, TOGETHER = 8, 512, 5


@functools.cache
def matrices(device):
    "The two matrices that are multiplied."
    import torch
    size, dtype = (8192, torch.bfloat16) if device == 'cuda' else (2048, torch.float32)
    return [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]


def ceiling(device):
    "Operations a second of a large product, now."
    a, b = matrices(device)
    start = time.perf_counter()
    for _ in range(3):
        c = a @ b
    c[0, 0].item()
    return 3 * 2 * len(a)**3 / (time.perf_counter() - start)


class Turns:
    "Steps of a process that are done when they are asked for, and measured."

    def __init__(self, device, answers):
        self.device = device
        self.answers = answers
        self.measured = None
        self.ceiling = None  # before the step
        self.start = None

    def begin(self):
        "Answer with what was measured, and wait for a turn; end the process if none comes."
        self.answers.write(json.dumps(self.measured) + '\n')
        self.answers.flush()
        if not sys.stdin.readline():
            os._exit(0)
        self.ceiling = ceiling(self.device)
        self.start = time.perf_counter()

    def end(self):
        "Take the time of the step."
        seconds = time.perf_counter() - self.start
        after = ceiling(self.device)
        self.measured = dict(seconds=seconds, ceiling=(self.ceiling + after) / 2)


def plain_loss(model, how, device):
    "A function: the loss of a batch, with some of this project's changes."
    import torch
    from torch.nn import functional as F

    from piny.batches import document_ids

    torch.manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (WINDOWS, LENGTH + 1), device=device)
    ids[:, ::200] = 1  # a story of 200 tokens after another
    ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    doc_ids = document_ids(ids) if how.get('stories') else None

    def ours():
        return model(ids, targets, doc_ids=doc_ids)

    def torchs():
        options = torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=2**23 // model.config.vocab_size)
        states = model.states(ids).flatten(0, 1)
        return F.linear_cross_entropy(states, model.embed_tokens.weight, targets.flatten(),
                                      options=options)

    def whole():
        logits = model.logits(model.states(ids))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return dict(ours=ours, torch=torchs).get(how.get('loss'), whole)


def plain(model, how, device):
    "A step of a plain loop, with some of this project's changes."
    import torch
    loss = plain_loss(model, how, device)
    forward = torch.compile(loss) if how.get('compile') else loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95),
                                  weight_decay=0.1, fused=how.get('fused'))

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
            value = forward()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def their_trainer(model, how, turns, folder):
    "transformers' own Trainer on a Llama of the same shape."
    import torch
    import transformers

    from piny.pretrained import llama_config

    shape = dict(llama_config(model.config), attn_implementation='sdpa', use_cache=False)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))

    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 1_000_000

        def __getitem__(self, i):
            generator = torch.Generator().manual_seed(i)
            ids = torch.randint(3, model.config.vocab_size, (LENGTH,), generator=generator)
            return dict(input_ids=ids, labels=ids)

    class Callback(transformers.TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            turns.begin()

        def on_step_end(self, *args, **kwargs):
            if turns.device == 'cuda':
                torch.cuda.synchronize()
            turns.end()

    settings = transformers.TrainingArguments(
        output_dir=folder, per_device_train_batch_size=WINDOWS, max_steps=10**6,
        max_grad_norm=1.0, optim='adamw_torch', report_to='none', save_strategy='no',
        logging_strategy='no', disable_tqdm=True, use_cpu=turns.device == 'cpu',
        bf16=turns.device == 'cuda', torch_compile=bool(how.get('compile')))
    trainer = transformers.Trainer(llama, settings, train_dataset=Data(),
                                   callbacks=[Callback()])
    trainer.train()


def this_trainer(preset, how, turns, folder):
    "The real `train`, on storybook text; a step is all between two calls of the log."
    import piny.tracking
    import piny.training
    from piny.config import make_config

    def log(self, step, tokens, **numbers):
        if 'train_loss' not in numbers:
            return
        if turns.start is not None:
            turns.end()
        turns.begin()

    piny.tracking.Tracker.log = log
    # drawn once a minute: a process that waits for its turn would draw at each step
    piny.training.plot_runs = lambda *args: None
    fields = dict(
        data='storybook:stories=3000', tokens_per_step=WINDOWS * LENGTH,
        micro_batch=WINDOWS, max_steps=10**6, eval_every=10**6, save_every=10**6,
        optimizer='adamw', compile='off', out=f'{folder}/run', device=turns.device,
        dtype='bfloat16' if turns.device == 'cuda' else 'float32')
    piny.training.train(make_config(preset, **{**fields, **how['trainer']}))


def time_kernels():
    "Milliseconds of attention on a CPU, forward and backward, and products, by type."
    import torch

    from piny.attention import causal_attention
    from piny.machine import matmul_flops
    timed = {}
    for dtype in torch.float32, torch.bfloat16:
        name = str(dtype)[6:]
        timed[name] = dict(product=matmul_flops(torch.device('cpu'), dtype), attention={})
        for length in 100, 200, 300:  # tokens of a story, with the heads of `mini`
            q, k, v = (torch.randn(1, heads, length, 32).to(dtype).requires_grad_()
                       for heads in (10, 2, 2))
            milliseconds = []
            for _ in range(50):
                start = time.perf_counter()
                causal_attention(q, k, v).sum().backward()
                milliseconds.append(1e3 * (time.perf_counter() - start))
            timed[name]['attention'][length] = statistics.median(milliseconds)
    return timed


def worker(name, preset, device):
    "One row, in its own process."
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print shall not mix with the answers
    import torch

    from piny.config import make_config
    from piny.machine import keep_freed_memory
    from piny.model import Piny

    how, turns = ROWS[name], Turns(device, answers)
    if 'threads' in how:
        torch.set_num_threads(how['threads'])
    memory = keep_freed_memory() if how.get('kept') else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, memory:
        os.environ.update(PINY_CACHE=f'{folder}/cache')
        if 'trainer' in how:
            this_trainer(preset, how, turns, folder)
            return
        model = Piny(make_config(preset).model).to(device)
        if how.get('peer'):
            their_trainer(model, how, turns, folder)
            return
        step = plain(model, how, device)
        while True:
            turns.begin()
            step()
            turns.end()


def start_worker(name, preset, device):
    "A row's process, when it is ready for its first step."
    command = [sys.executable, __file__, '--worker', name, '--presets', preset,
               '--device', device]
    env = {**os.environ, 'WANDB_MODE': 'disabled', 'TQDM_DISABLE': '1',
           'PYTHONWARNINGS': 'ignore'}
    process = subprocess.Popen(command, env=env, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    return process


def ask(process):
    "One turn of a worker: what it measured, or `None` where it has died."
    try:
        process.stdin.write('go\n')
        process.stdin.flush()
    except OSError:
        return None
    line = process.stdout.readline()
    return json.loads(line) if line else None


def measure(preset, names, rounds, device):
    "All rows of a preset, `TOGETHER` at a time in turns."
    from piny.config import make_config
    from piny.model import Piny

    flops = Piny(make_config(preset).model).flops_per_token(LENGTH)
    rows, start = [], time.perf_counter()
    for first in range(0, len(names), TOGETHER):
        rows += take_turns(preset, names[first:first + TOGETHER], rounds, device, flops)
        seconds_a_row = (time.perf_counter() - start) / len(rows)
        print(f'{preset}: {len(rows)} of {len(names)} rows, about '
              f'{seconds_a_row * (len(names) - len(rows)):.0f} s left', file=sys.stderr)
    return dict(flops_per_token=flops, rounds=rounds, rows=rows)


def take_turns(preset, names, rounds, device, flops):
    "Some rows: all processes are warmed, then each does a step a round."
    workers, warm_seconds = {}, {}
    for name in names:  # one after the other: two steps that do not count
        start = time.perf_counter()
        workers[name] = start_worker(name, preset, device)
        ask(workers[name])
        alive = ask(workers[name])
        warm_seconds[name] = time.perf_counter() - start
        print(f'{preset}: {name}: {"warm" if alive else "failed"} after '
              f'{warm_seconds[name]:.0f} s', file=sys.stderr)
    steps = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            if measured := ask(workers[name]):
                steps[name].append(measured)
    rows = []
    for name in names:
        memory = peak_memory(workers[name].pid)
        workers[name].stdin.close()
        workers[name].wait()
        if steps[name]:
            row = describe_steps(steps[name], flops)
            rows.append(dict(name=name, **row, warm_seconds=warm_seconds[name],
                             memory_gib=memory))
        else:
            rows.append(dict(name=name, failed=True))
    return rows


def describe_steps(steps, flops):
    "The numbers of a row, of its measured steps."
    tokens = WINDOWS * LENGTH
    shares = [flops * tokens / step['seconds'] / step['ceiling'] for step in steps]
    return dict(share=statistics.median(shares), least=min(shares), most=max(shares),
                tokens_per_second=tokens / statistics.median(s['seconds'] for s in steps),
                ceiling=statistics.median(s['ceiling'] for s in steps))


def peak_memory(pid):
    "The most resident memory that a process has had, GiB; on Linux."
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) for line in lines if line.startswith('VmHWM')]
    return sizes[0] / 2**20 if sizes else None


def print_row(row):
    "A row, for people."
    if row.get('failed'):
        print(f'{row["name"]:40} failed')
        return
    print(f'{row["name"]:40} '
          f'{row["share"]:5.0%} ({row["least"]:.0%} to {row["most"]:.0%})  '
          f'{row["tokens_per_second"]:8,.0f} tokens/s  {row["memory_gib"]:.2f} GiB  '
          f'warm after {row["warm_seconds"]:.0f} s')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--presets', nargs='+', default=['mini', 'piny'])
    parser.add_argument('--rows', nargs='+', default=list(ROWS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--out', metavar='NAME', help='the file, beside this script '
                        '(default: training-speed.json, on CUDA training-speed-cuda.json)')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.presets[0], options.device)
        return
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f'there is no row {min(unknown)!r}; '
                     f'expected some of: {", ".join(ROWS)}')
    import torch

    from piny.config import PRESETS
    if unknown := set(options.presets) - set(PRESETS):
        parser.error(f'there is no preset {min(unknown)!r}; '
                     f'expected some of: {", ".join(PRESETS)}')

    cuda = options.device == 'cuda'
    path = HERE/(options.out or f'training-speed{"-cuda" if cuda else ""}.json')
    result = json.loads(path.read_text()) if path.is_file() else dict(presets={})
    result.update(torch=torch.__version__, python=platform.python_version(),
                  processor=processor(), cores=os.cpu_count(),
                  device=torch.cuda.get_device_name() if cuda else 'cpu')
    if not cuda:
        result['kernels'] = time_kernels()
    for preset in options.presets:
        result['presets'][preset] = measure(preset, options.rows, options.rounds,
                                            options.device)
        path.write_text(json.dumps(result, indent=1) + '\n')
    for preset, measured in result['presets'].items():
        print(f'\n{preset}, share of the matrix product, median of {measured["rounds"]} '
              '(least to most)')
        for row in measured['rows']:
            print_row(row)


if __name__ == '__main__':
    main()
