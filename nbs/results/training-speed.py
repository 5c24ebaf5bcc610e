"""Training speed, one change a row, as a share of the machine's own matrix product. Writes `training-speed.json` beside itself.

    python nbs/results/training-speed.py [--presets mini piny] [--rows NAME …] [--rounds 5] [--device cuda]

Each row is a process of its own. Rows take turns, up to five at a time (a row of piny holds 3 GiB): one step each, then the next round.
Right before and after a step the process multiplies two matrices, float32 of 2048 x 2048 (on CUDA bfloat16 of 8192 x 8192): that is the ceiling.
`transformers`' Trainer needs `pip install accelerate`.
A step is 4,096 tokens, 8 windows of 512: forward, backward, clipping, optimizer. The card's step is 64 times as large, and its optimizer weighs that much less.
"""
import argparse, contextlib, json, os, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path

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
}
WINDOWS, LENGTH, TOGETHER = 8, 512, 5


def ceiling(device):
    "Operations a second of a large product, now."
    import torch
    n, kind = (8192, torch.bfloat16) if device == 'cuda' else (2048, torch.float32)
    a, b = ceiling.pair = getattr(ceiling, 'pair', None) or [torch.randn(n, n, device=device).to(kind) for _ in range(2)]
    start = time.perf_counter()
    for _ in range(3): c = a @ b
    c[0, 0].item()
    return 3 * 2 * n**3 / (time.perf_counter() - start)


def wait(answers, measured=None):
    "Answers with what was measured, and waits for the next turn; ends the process when there is none."
    answers.write(json.dumps(measured) + '\n')
    answers.flush()
    if not sys.stdin.readline(): os._exit(0)


def in_turns(step, device, answers):
    "Does a step whenever it is asked for."
    measured = None
    while True:
        wait(answers, measured)
        before, start = ceiling(device), time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        measured = dict(seconds=seconds, ceiling=(before + ceiling(device)) / 2)


def plain(model, how, device):
    "A step of a plain loop, with some of this project's changes."
    import torch
    from torch.nn import functional as F
    from piny.dataset import story_numbers
    torch.manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (WINDOWS, LENGTH + 1), device=device)
    ids[:, ::200] = 1                                                 # a story of 200 tokens after another
    ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    given = dict(doc_ids=story_numbers(ids)) if how.get('stories') else {}
    def loss():
        if how.get('loss') == 'ours': return model(ids, targets, **given)
        states = model.states(ids, **given)
        if how.get('loss') == 'torch':
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2**23 // model.config.vocab_size)
            return F.linear_cross_entropy(states.flatten(0, 1), model.embed_tokens.weight, targets.flatten(), options=options)
        return F.cross_entropy(model.logits(states).flatten(0, 1), targets.flatten())
    forward = torch.compile(loss) if how.get('compile') else loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=how.get('fused'))
    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'): value = forward()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()
    return step


def their_trainer(model, how, device, answers, folder):
    "transformers' own Trainer on a Llama of the same shape."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
    from piny.model import to_llama
    llama = LlamaForCausalLM(LlamaConfig(**{**to_llama(model.config), 'attn_implementation': 'sdpa', 'use_cache': False}))
    class Data(torch.utils.data.Dataset):
        def __len__(self): return 1_000_000
        def __getitem__(self, i):
            ids = torch.randint(3, model.config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(i))
            return dict(input_ids=ids, labels=ids)
    class Turns(TrainerCallback):
        measured, before, start = None, None, None
        def on_step_begin(self, *args, **kwargs):
            wait(answers, self.measured)
            self.before, self.start = ceiling(device), time.perf_counter()
        def on_step_end(self, *args, **kwargs):
            if device == 'cuda': torch.cuda.synchronize()
            seconds = time.perf_counter() - self.start
            self.measured = dict(seconds=seconds, ceiling=(self.before + ceiling(device)) / 2)
    settings = TrainingArguments(output_dir=folder, per_device_train_batch_size=WINDOWS, max_steps=10**6, max_grad_norm=1.0, optim='adamw_torch', report_to='none',
                                 save_strategy='no', logging_strategy='no', disable_tqdm=True, use_cpu=device == 'cpu', bf16=device == 'cuda', torch_compile=bool(how.get('compile')))
    Trainer(llama, settings, train_dataset=Data(), callbacks=[Turns()]).train()


def this_trainer(preset, how, device, answers, folder):
    "The real `train`, on storybook text; a step is all between two calls of the log."
    import piny.training as training
    state = dict(measured=None)
    def log(self, step, tokens, **numbers):
        if 'train_loss' not in numbers: return
        if 'start' in state:
            seconds = time.perf_counter() - state['start']
            state['measured'] = dict(seconds=seconds, ceiling=(state['before'] + ceiling(device)) / 2)
        wait(answers, state['measured'])
        state.update(before=ceiling(device), start=time.perf_counter())
    training.Tracker.log = log
    training.plot_runs = lambda *args: None                           # drawn once a minute: a process that waits for its turn would draw at each step
    training.train(training.make_config(preset, **{**dict(
        data='storybook:stories=3000', tokens_per_step=WINDOWS * LENGTH, micro_batch=WINDOWS, max_steps=10**6, eval_every=10**6, save_every=10**6, optimizer='adamw',
        dtype='bfloat16' if device == 'cuda' else 'float32', out=f'{folder}/run', device=device), **how['trainer']}))


def worker(name, preset, device):
    "One row, in its own process."
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)                                                     # what libraries print shall not mix with the answers
    import torch
    from piny.model import Piny
    from piny.training import kept_memory, make_config
    how = ROWS[name]
    if 'threads' in how: torch.set_num_threads(how['threads'])
    with tempfile.TemporaryDirectory() as folder, kept_memory() if how.get('kept') else contextlib.nullcontext():
        os.environ.update(PINY_CACHE=f'{folder}/cache')
        if 'trainer' in how: return this_trainer(preset, how, device, answers, folder)
        model = Piny(make_config(preset).model).to(device)
        if how.get('peer'): return their_trainer(model, how, device, answers, folder)
        in_turns(plain(model, how, device), device, answers)


def ask(process):
    "One turn of a worker: what it measured, or `None` where it has died."
    try:
        process.stdin.write('go\n')
        process.stdin.flush()
    except OSError: return None
    line = process.stdout.readline()
    return json.loads(line) if line else None


def measure(preset, names, rounds, device):
    "All rows of a preset, `TOGETHER` at a time in turns."
    from piny.model import Piny, flops_per_token
    from piny.training import make_config
    work, rows, began = flops_per_token(Piny(make_config(preset).model), LENGTH), [], time.perf_counter()
    for first in range(0, len(names), TOGETHER):
        rows += take_turns(preset, names[first:first + TOGETHER], rounds, device, work)
        spent = time.perf_counter() - began
        print(f'{preset}: {len(rows)} of {len(names)} rows, about {spent / len(rows) * (len(names) - len(rows)):.0f} s left', file=sys.stderr)
    return dict(flops_per_token=work, rounds=rounds, rows=rows)


def take_turns(preset, names, rounds, device, work):
    "Some rows: all processes are warmed, then each does a step a round."
    env = {**os.environ, 'WANDB_MODE': 'disabled', 'TQDM_DISABLE': '1', 'PYTHONWARNINGS': 'ignore'}
    workers, warm, seen, rows = {}, {}, {name: [] for name in names}, []
    for name in names:                                                # one after the other: two steps that do not count
        start = time.perf_counter()
        workers[name] = process = subprocess.Popen([sys.executable, __file__, '--worker', name, '--presets', preset, '--device', device], env=env, text=True,
                                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        process.stdout.readline()
        alive = [ask(process) for _ in range(2)][-1]
        warm[name] = time.perf_counter() - start
        print(f'{preset}: {name}: {"warm" if alive else "failed"} after {warm[name]:.0f} s', file=sys.stderr)
    for i in range(rounds):
        for name in names:
            if found := ask(workers[name]): seen[name].append(found)
    for name in names:
        memory = peak_memory(workers[name].pid)
        workers[name].stdin.close()
        workers[name].wait()
        if not seen[name]:
            rows.append(dict(name=name, failed=True))
            continue
        shares = [work * WINDOWS * LENGTH / f['seconds'] / f['ceiling'] for f in seen[name]]
        rows.append(dict(name=name, share=statistics.median(shares), least=min(shares), most=max(shares), warm_seconds=warm[name], memory_gib=memory,
                         tokens_per_second=WINDOWS * LENGTH / statistics.median(f['seconds'] for f in seen[name]),
                         ceiling=statistics.median(f['ceiling'] for f in seen[name])))
    return rows


def peak_memory(pid):
    "The most resident memory that a process has had, GiB; on Linux."
    try: return next(int(line.split()[1]) for line in open(f'/proc/{pid}/status') if line.startswith('VmHWM')) / 2**20
    except (OSError, StopIteration): return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--presets', nargs='+', default=['mini', 'piny'])
    parser.add_argument('--rows', nargs='+', default=list(ROWS))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker: return worker(options.worker, options.presets[0], options.device)
    if wrong := set(options.rows) - set(ROWS): parser.error(f'there is no row {min(wrong)!r}; expected some of: {", ".join(ROWS)}')
    import torch
    from piny.training import PRESETS
    if wrong := set(options.presets) - set(PRESETS): parser.error(f'there is no preset {min(wrong)!r}; expected some of: {", ".join(PRESETS)}')
    path = HERE/f'training-speed{"-cuda" if options.device == "cuda" else ""}.json'
    found = json.loads(path.read_text()) if path.is_file() else dict(presets={})
    found.update(torch=torch.__version__, python=platform.python_version(), cores=os.cpu_count(), device=torch.cuda.get_device_name() if options.device == 'cuda' else 'cpu')
    for preset in options.presets:
        found['presets'][preset] = measure(preset, options.rows, options.rounds, options.device)
        path.write_text(json.dumps(found, indent=1) + '\n')
    for preset, measured in found['presets'].items():
        print(f'\n{preset}, share of the matrix product, median of {measured["rounds"]} (least to most)')
        for r in measured['rows']:
            print(f'{r["name"]:40}', 'failed' if r.get('failed') else
                  f'{r["share"]:5.0%} ({r["least"]:.0%} to {r["most"]:.0%})  {r["tokens_per_second"]:8,.0f} tokens/s  {r["memory_gib"]:.2f} GiB  warm after {r["warm_seconds"]:.0f} s')


if __name__ == '__main__': main()
