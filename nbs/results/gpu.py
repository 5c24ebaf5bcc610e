"""A GPU's ten minutes: does everything run, how fast does the card's model learn and tell?

    python nbs/results/gpu.py [--minutes 9] [--rows NAME …] [--rehearse]

Rows run one after the other, each in processes of its own. `gpu.json`, beside this script,
is written after each number; a row that fails is noted, and the next one begins. A row
that no longer fits into the minutes is left for another call, which names it by `--rows`:
the other rows of the file are kept. The table comes last.

`--rehearse` does the same on a CPU, with a tiny model, and writes to a temporary folder: it
shows that the rows run, not what they are worth.

Nothing is fetched: the text is the storybook. A machine without a network that has torch,
transformers, Numba and safetensors needs the wheels of pydantic, pydantic-core,
annotated-types, typing-inspection, platformdirs, ftfy, wcwidth and sentencepiece beside
(0.2.2 of the last ends the process where a text gives too few pieces).
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARY = HERE.parents[1]
GOAL_MFU, GOAL_RATIO = 0.5, 1.3


class Sizes(NamedTuple):
    "What is measured, and how large."
    device: str
    dtype: str  # of the forward pass
    shape: dict  # of `make_config`, beside the preset `piny`
    data: str
    windows: tuple  # micro-batches
    length: int  # tokens of a window
    steps: int  # that are timed
    stories: tuple  # told side by side
    new_tokens: int  # of each
    matrix: int  # rows and columns of the product
    copied: int  # numbers of the copy, float32


CARD = Sizes('cuda', 'bfloat16', {}, 'storybook:stories=3000', (16, 32, 64), 512, 10,
             (1, 64, 1024), 200, 8192, 2**30)
REHEARSAL = Sizes(
    'cpu', 'float32', dict(vocab_size=512, dim=64, hidden_dim=128, n_layers=2, n_heads=4,
                           n_kv_heads=2, tokens_per_step=1024, micro_batch=2, seq_len=128,
                           context=256), 'storybook:stories=300,plots=8', (2, 4), 128, 2,
    (1, 3), 8, 256, 2**16)


def card_config(sizes, **fields):
    "The card's run, at the sizes of this measurement."
    from piny.config import make_config
    shared = dict(data=sizes.data, device=sizes.device, dtype=sizes.dtype, eval_stories=20)
    return make_config('piny', **{**shared, **sizes.shape, **fields})


def wait(sizes):
    "Until the device has done what it was told."
    import torch
    if sizes.device == 'cuda':
        torch.cuda.synchronize()


def forward_type(sizes):
    "A block whose products are computed in the type of the forward pass."
    import torch
    return torch.autocast(sizes.device, torch.bfloat16, enabled=sizes.dtype == 'bfloat16')


# ---- does everything run?

def train_command(sizes, run, *options):
    "A command line that trains in a fresh process, in the folder `run`."
    fields = {**sizes.shape, 'data': sizes.data, 'device': sizes.device,
              'dtype': sizes.dtype, 'eval_stories': 20, 'out': run}
    given = [word for name, value in fields.items() for word in (f'--{name}', str(value))]
    return [sys.executable, '-m', 'piny.train_ddp', '--preset', 'piny', *given,
            *map(str, options)]


def run_command(command):
    "Run a command; its last words are the reason, if it fails."
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'exit code {done.returncode}: {done.stderr.strip()[-400:]}')
    return done.stdout


def training_lines(run):
    "What each step of a run has measured."
    from piny.metrics import read_metrics
    return [line for line in read_metrics(run) if 'train_loss' in line]


def ten_steps(sizes, folder):
    "The card's command, ten steps: the loss falls; memory and speed."
    run = folder/'ten-steps'
    run_command(train_command(sizes, run, '--max_steps', 10, '--warmup_steps', 2))
    lines = training_lines(run)
    losses = [line['train_loss'] for line in lines]
    assert losses[-1] < losses[0] - 0.1, f'the loss did not fall: {losses}'
    speed = statistics.median(line['tokens_per_second'] for line in lines[3:])
    yield dict(first_loss=losses[0], last_loss=losses[-1], tokens_per_second=speed,
               mfu=statistics.median(line['mfu'] for line in lines[3:]),
               memory_gib=lines[-1]['memory_gib'])


def same_on_cpu(sizes, folder):
    "The weights of that run on the device and on a CPU: the same logits, the same story."
    import torch

    from piny.pretrained import load_checkpoint
    from piny.sampling import generate
    torch.backends.cuda.matmul.allow_tf32 = False
    logits, stories = [], []
    for device in 'cpu', sizes.device:
        model, tokenizer = load_checkpoint(folder/'ten-steps')
        model = model.to(device).eval()
        ids = torch.arange(3, 103, device=device)[None]
        with torch.inference_mode():
            logits.append(model(ids).float().cpu())
        stories += generate(model, tokenizer, 'Lily', temperature=0, max_new_tokens=40)
    difference = (logits[0] - logits[1]).abs().max().item()
    assert difference < 1e-3 * logits[0].std().item() + 1e-4, f'off by {difference}'
    yield dict(largest_difference=difference, same_story=stories[0] == stories[1])


def ddp_alone(sizes, folder):
    "DDP with one process, over NCCL: the gradients of the model alone."
    import torch
    import torch.distributed as dist

    from piny.model import Piny
    torch.manual_seed(0)
    config = card_config(sizes)
    model = Piny(config.model).to(sizes.device)
    ids = torch.randint(3, config.model.vocab_size, (2, sizes.length), device=sizes.device)
    backend = 'nccl' if sizes.device == 'cuda' else 'gloo'
    dist.init_process_group(backend, init_method=f'file://{folder}/ddp', rank=0,
                            world_size=1, timeout=datetime.timedelta(seconds=60))
    gradients = []
    for forward in model, torch.nn.parallel.DistributedDataParallel(model):
        model.zero_grad()
        forward(ids, ids).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    dist.destroy_process_group()
    off = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
    assert off < 1e-4, f'gradients differ by {off}'
    yield dict(backend=backend, relative_difference=off)


def under_torchrun(sizes, folder):
    "The same training, started by torchrun."
    run = folder/'torchrun'
    command = train_command(sizes, run, '--max_steps', 3)
    command[1:2] = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1',
                    '-m']
    run_command(command)
    yield dict(steps=len(training_lines(run)))


def launched_beside(sizes, folder):
    "Launched from a process that uses the device already, as a notebook's kernel does."
    import torch

    from piny.train_ddp import launch
    torch.zeros(1, device=sizes.device)
    run = folder/'launched'
    launch(card_config(sizes, out=str(run), max_steps=3), nproc_per_node=1, max_restarts=1)
    yield dict(steps=len(training_lines(run)))


def wait_for_step(run, process, step):
    "Until a run has saved a step; where its process has ended, that is an error."
    while not (run/'checkpoints'/f'step-{step:06}').is_dir():
        if process.poll() is not None:
            raise RuntimeError(f'ended with {process.returncode} before step {step}')
        time.sleep(0.02)


def killed(sizes, folder):
    "Killed without warning after step 4, and resumed: the losses of a run that was not."
    whole, cut = folder/'whole', folder/'cut'
    options = '--max_steps', 12, '--save_every', 4
    run_command(train_command(sizes, whole, *options))
    process = subprocess.Popen(train_command(sizes, cut, *options),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_step(cut, process, 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = len(training_lines(cut))
    run_command([sys.executable, '-m', 'piny.train_ddp', '--resume', str(cut)])
    losses = [[line['train_loss'] for line in training_lines(run)] for run in (whole, cut)]
    assert len(losses[0]) == len(losses[1]) == 12
    off = max(abs(a - b) for a, b in zip(*losses))
    assert off < 0.02, f'losses differ by {off}'
    yield dict(killed_after=step, largest_difference=off, same_bits=off == 0)


# ---- how fast does it learn?

def ceilings(sizes, folder):
    "What the device gives: a large product, a large copy."
    import torch
    a, b = (torch.randn(sizes.matrix, sizes.matrix, device=sizes.device) for _ in range(2))
    numbers = torch.zeros(sizes.copied, device=sizes.device)
    room = torch.empty_like(numbers)
    dtype = getattr(torch, sizes.dtype)
    a, b = a.to(dtype), b.to(dtype)
    product = seconds_of(sizes, lambda: a @ b)
    copy = seconds_of(sizes, lambda: room.copy_(numbers))
    yield dict(flops=2 * sizes.matrix**3 / product,
               bytes_per_second=2 * numbers.nbytes / copy)


def seconds_of(sizes, action, times=10):
    "The median time of an action; three times before do not count."
    taken = []
    for _ in range(3 + times):
        wait(sizes)
        start = time.perf_counter()
        action()
        wait(sizes)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[3:])


def gpt(config, length):
    "A plain GPT of the card's size: learned positions, LayerNorm, GELU, no biases."
    import torch
    from torch import nn
    from torch.nn import functional as F
    dim, heads = config.dim, config.n_heads

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
            self.out = nn.Linear(dim, dim, bias=False)
            hidden = 5 * config.hidden_dim // 4  # two matrices, where the card has three
            self.up = nn.Linear(dim, hidden, bias=False)
            self.down = nn.Linear(hidden, dim, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, heads, -1)).unbind(2)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(found.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(config.vocab_size, dim)
            self.places = nn.Embedding(length, dim)
            self.layers = nn.ModuleList(Layer() for _ in range(config.n_layers))
            self.norm = nn.LayerNorm(dim)

        def forward(self, ids, targets):
            x = self.tokens(ids) + self.places(torch.arange(length, device=ids.device))
            for layer in self.layers:
                x = layer(x)
            logits = F.linear(self.norm(x), self.tokens.weight)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return GPT()


def llama(config):
    "transformers' Llama of the same shape, as a function of ids and targets."
    import torch
    import transformers

    from piny.pretrained import llama_config
    shape = dict(llama_config(config), attn_implementation='sdpa', use_cache=False)

    class Llama(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))

        def forward(self, ids, targets):
            logits = self.model(input_ids=ids).logits.flatten(0, 1)
            return torch.nn.functional.cross_entropy(logits, targets.flatten())

    return Llama()


def learning_model(kind, config, length):
    "A model that gives the loss of ids and targets."
    from piny.model import Piny
    if kind == 'piny':
        return Piny(config)
    return llama(config) if kind == 'transformers' else gpt(config, length)


def learn(kind, compiled):
    "A row: training steps of one model, at several micro-batches."
    def row(sizes, folder):
        import torch
        config = card_config(sizes).model
        torch.manual_seed(0)
        model = learning_model(kind, config, sizes.length).to(sizes.device)
        forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95),
                                      weight_decay=0.1, fused=True)
        for windows in sizes.windows:
            yield dict(windows=windows, **learning_speed(
                sizes, model, forward, optimizer, windows, config.vocab_size))
    return row


def learning_speed(sizes, model, forward, optimizer, windows, vocab_size):
    "Tokens a second of a whole step: forward, backward, clipping, update."
    import torch
    ids = torch.randint(3, vocab_size, (windows, sizes.length + 1), device=sizes.device)
    ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step():
        with forward_type(sizes):
            loss = forward(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds = seconds_of(sizes, step, sizes.steps)
    n_weights = sum(p.numel() for p in model.parameters())
    measured = dict(parameters=n_weights, tokens_per_second=ids.numel() / seconds)
    if sizes.device == 'cuda':
        measured['memory_gib'] = torch.cuda.max_memory_allocated() / 2**30
    return measured


def trainer_speed(sizes, folder):
    "The real trainer: what its own log says, at several micro-batches."
    for windows in sizes.windows:
        run = folder/f'trainer-{windows}'
        run_command(train_command(
            sizes._replace(shape={**sizes.shape, 'micro_batch': windows}), run,
            '--max_steps', 3 + sizes.steps))
        lines = training_lines(run)[3:]
        yield dict(windows=windows, memory_gib=lines[-1]['memory_gib'],
                   tokens_per_second=statistics.median(
                       line['tokens_per_second'] for line in lines),
                   mfu=statistics.median(line['mfu'] for line in lines))


# ---- how fast does it tell?

def tell(sizes, folder):
    "Stories side by side by this project's decoder, greedy, all of one length."
    import torch

    from piny.decoder import Decoder
    from piny.generation import Sequence, generate_steps
    from piny.model import Piny
    from piny.next_token import SamplingParams
    config = card_config(sizes).model
    torch.manual_seed(0)
    dtype = getattr(torch, sizes.dtype)
    decoder = Decoder(Piny(config).to(sizes.device, dtype).eval())

    class NoEnd:
        "A tokenizer that ends nothing."
        bos_id, eos_id, vocab_size = 1, -1, config.vocab_size

        @staticmethod
        def decode(ids):
            return ''

    def stories(n, new_tokens):
        params = SamplingParams(temperature=0, repetition_penalty=1,
                                max_new_tokens=new_tokens)
        sequences = [Sequence(ids=[1, *range(10, 29)], params=params, n_prompt=20)
                     for _ in range(n)]
        for _ in generate_steps(decoder, NoEnd, sequences, alternatives=None):
            pass

    yield from telling_speeds(sizes, stories)


def their_telling(sizes, folder):
    "The same by `generate` of transformers."
    import torch
    import transformers

    from piny.pretrained import llama_config
    config = transformers.LlamaConfig(**llama_config(card_config(sizes).model))
    model = transformers.LlamaForCausalLM(config)
    model = model.to(sizes.device, getattr(torch, sizes.dtype)).eval()

    def stories(n, new_tokens):
        ids = torch.tensor([[1, *range(10, 29)]] * n, device=sizes.device)
        model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                       max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=2)

    yield from telling_speeds(sizes, stories)


def telling_speeds(sizes, stories):
    "Tokens a second, one story and many, prompts included in the time; the best of three."
    for n in sizes.stories:
        stories(n, 4)
        taken = []
        for _ in range(3):
            wait(sizes)
            start = time.perf_counter()
            stories(n, sizes.new_tokens)
            wait(sizes)
            taken.append(time.perf_counter() - start)
        yield dict(stories=n, tokens_per_second=n * sizes.new_tokens / min(taken))


ROWS = {  # name: what is done, seconds at most
    'ceilings': (ceilings, 60),
    'ten steps of the card': (ten_steps, 120),
    'the same on a CPU': (same_on_cpu, 60),
    'learn: piny, compiled': (learn('piny', True), 120),
    'learn: piny': (learn('piny', False), 60),
    'learn: transformers, compiled': (learn('transformers', True), 120),
    'learn: transformers': (learn('transformers', False), 60),
    'learn: GPT, compiled': (learn('gpt', True), 120),
    'learn: GPT': (learn('gpt', False), 60),
    'tell: piny': (tell, 90),
    'tell: transformers': (their_telling, 90),
    'DDP, one process': (ddp_alone, 60),
    'launched beside CUDA': (launched_beside, 90),
    'killed and resumed': (killed, 120),
    'under torchrun': (under_torchrun, 60),
    'the trainer, as it trains': (trainer_speed, 120),
}


# ---- one row after the other

def worker(name, folder, sizes):
    "A row, in its own process: each thing that it measures as a line of JSON."
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what libraries print shall not mix with the answers
    for measured in ROWS[name][0](sizes, Path(folder)):
        print(json.dumps(measured), file=answers, flush=True)
    answers.close()
    os._exit(0)


def measure_row(name, folder, options, seconds, keep):
    "Run a row for so many seconds at most; give each of its lines to `keep`."
    command = [sys.executable, __file__, '--worker', name, '--folder', str(folder)]
    if options.rehearse:
        command.append('--rehearse')
    environment = {**os.environ, 'WANDB_MODE': 'disabled', 'TQDM_DISABLE': '1',
                   'PYTHONPATH': os.pathsep.join(sys.path),
                   'PINY_CACHE': str(folder/'cache')}
    errors = folder/'errors.txt'
    with errors.open('w') as log:
        process = subprocess.Popen(command, env=environment, text=True, stderr=log,
                                   stdout=subprocess.PIPE, start_new_session=True)
        late = threading.Event()

        def end():
            late.set()
            os.killpg(process.pid, signal.SIGKILL)  # with all that the row has started

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            for line in process.stdout:
                keep(json.loads(line))
            process.wait()
        finally:
            timer.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if late.is_set():
        return f'not done after {seconds:.0f} s'
    if process.returncode:
        return errors.read_text().strip()[-400:] or f'exit code {process.returncode}'
    return None


def describe_device(sizes):
    "What was measured on."
    import torch
    name = torch.cuda.get_device_name() if sizes.device == 'cuda' else platform.machine()
    return dict(device=name, torch=torch.__version__, cuda=torch.version.cuda,
                python=platform.python_version(), date=str(datetime.date.today()),
                command=' '.join(['python nbs/results/gpu.py', *sys.argv[1:]]))


def measure(options, sizes, path):
    "All rows that fit into the minutes; the file is written after each number."
    result = json.loads(path.read_text()) if path.is_file() else dict(rows={})
    result.update(describe_device(sizes))
    end, names = time.monotonic() + 60 * options.minutes, options.rows or list(ROWS)
    with tempfile.TemporaryDirectory() as folder:
        for n, name in enumerate(names):
            left = end - time.monotonic()
            if left < 15:  # what an earlier call has measured stays
                unmeasured = dict(measured=[], failed='no time was left')
                result['rows'].setdefault(name, unmeasured)
                continue
            row = result['rows'][name] = dict(measured=[])

            def keep(measured):
                row['measured'].append(measured)  # noqa: B023  (called before the next row)
                path.write_text(json.dumps(result, indent=1) + '\n')

            start = time.monotonic()
            if failed := measure_row(name, Path(folder), options, min(left, ROWS[name][1]),
                                     keep):
                row['failed'] = failed
            row['seconds'] = round(time.monotonic() - start, 1)
            path.write_text(json.dumps(result, indent=1) + '\n')
            outcome = ', FAILED' if 'failed' in row else ''
            left = max(0, end - time.monotonic())
            print(f'{n + 1} of {len(names)}: {name}: {row["seconds"]:.0f} s{outcome}; '
                  f'{left:.0f} s left', file=sys.stderr, flush=True)
    return result


def best(result, name):
    "The most tokens a second of a row; nothing, where it has none."
    rows = result['rows'].get(name, {}).get('measured', [])
    return max((row['tokens_per_second'] for row in rows), default=None)


def card_mfu(result, tokens_per_second, sizes):
    "What share of the device's product the card's model uses at this speed."
    import torch

    from piny.model import Piny
    ceiling = result['rows'].get('ceilings', {}).get('measured')
    if not ceiling or not tokens_per_second:
        return None
    with torch.device('meta'):
        model = Piny(card_config(sizes).model)
    return tokens_per_second * model.flops_per_token(sizes.length) / ceiling[0]['flops']


def in_short(value):
    "A number for people."
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.4g}'
    return str(value)


def print_table(result, sizes):
    "All rows, then the goals."
    print(f'\n{result["device"]}, torch {result["torch"]}')
    for name, row in result['rows'].items():
        for measured in row['measured']:
            numbers = [f'{key} {in_short(value)}' for key, value in measured.items()]
            print(f'{name:30} {", ".join(numbers)}')
        if 'failed' in row:
            print(f'{name:30} FAILED: {row["failed"].splitlines()[-1]}')
    if sizes.device == 'cpu':
        return  # a rehearsal reaches no goal
    ours = best(result, 'learn: piny, compiled')
    others = [best(result, name) for name in ROWS
              if name.startswith(('learn: transformers', 'learn: GPT'))]
    others = [speed for speed in others if speed]
    if mfu := card_mfu(result, ours, sizes):
        print(f'model FLOP utilization: {mfu:.0%} (goal: {GOAL_MFU:.0%})')
    if ours and others:
        print(f'training, beside the best other: {ours / max(others):.2f} times '
              f'(goal: {GOAL_RATIO})')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=9, help='for all rows (9)')
    parser.add_argument('--rows', nargs='+', metavar='NAME', help='these only')
    parser.add_argument('--rehearse', action='store_true', help='on a CPU, tiny')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    parser.add_argument('--folder', help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = REHEARSAL if options.rehearse else CARD
    if options.worker:
        worker(options.worker, options.folder, sizes)
        return
    if unknown := set(options.rows or []) - set(ROWS):
        parser.error(f'there is no row {min(unknown)!r}; '
                     f'expected some of: {", ".join(ROWS)}')
    sys.path.insert(0, str(LIBRARY))
    import torch
    if sizes.device == 'cuda' and not torch.cuda.is_available():
        parser.error('there is no GPU here; --rehearse runs all rows on a CPU')
    path = HERE/'gpu.json'
    if options.rehearse:
        path = Path(tempfile.mkdtemp())/'gpu.json'
        print(f'A rehearsal on a CPU, in {path}', file=sys.stderr)
    result = measure(options, sizes, path)
    print_table(result, sizes)
    if any('failed' in row for row in result['rows'].values()):
        sys.exit(1)


if __name__ == '__main__':
    main()
