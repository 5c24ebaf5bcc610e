"""Where the demo's time goes, from nothing to a told story. Writes `time-to-story.json`.

    python nbs/results/time-to-story.py [--rounds 3] [--install] [--beside CHECKOUT]

With `--install` a fresh virtual environment is made first, and `pip install` timed once; it
needs an index of packages. Each round is a process of its own with an empty cache. A second
is counted once: in the innermost part that it belongs to. With `--beside` the demo of
another checkout is measured too, in turns.
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _processor import processor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REMAINDER = 'the rest'
PARTS = ['import', 'text', 'tokenizer', 'encoding', 'training', 'validation', 'telling',
         'figures', 'saving', 'log and W&B', REMAINDER]


class Clock:
    "Seconds of parts; a part that begins inside another takes its time from it."

    def __init__(self):
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.open = []
        self.last = time.perf_counter()

    def turn(self):
        "Count the time since the last turn for the innermost part that is open."
        now = time.perf_counter()
        self.spent[self.open[-1] if self.open else REMAINDER] += now - self.last
        self.last = now

    @contextlib.contextmanager
    def part(self, name):
        "What happens inside the block belongs to a part."
        self.turn()
        self.open.append(name)
        try:
            yield
        finally:
            self.turn()
            self.open.pop()

    def function(self, name, owner, attribute):
        "Count calls of a function or method under a name."
        original = getattr(owner, attribute)

        def timed(*args, **kwargs):
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)

    def generator(self, name, owner, attribute):
        "Count what a generator takes to give its items."
        original = getattr(owner, attribute)

        def timed(*args, **kwargs):
            items = iter(original(*args, **kwargs))
            while True:
                with self.part(name):
                    item = next(items, self)  # the clock itself stands for the end
                if item is self:
                    return
                yield item

        setattr(owner, attribute, timed)


def one_round():
    "The demo in this process; prints the seconds of each part as JSON."
    clock = Clock()
    with clock.part('import'):
        import piny.preparation
        import piny.runs
        import piny.tokenizer
        import piny.tracking
        import piny.train_ddp
        import piny.training
    clock.generator('text', piny.preparation, 'raw_stories')
    clock.function('tokenizer', piny.tokenizer.Tokenizer, 'train')
    clock.function('encoding', piny.runs, 'prepare')
    clock.function('validation', piny.training, 'validate')
    clock.generator('telling', piny.training, 'stream')
    clock.function('figures', piny.training, 'plot_runs')
    clock.function('saving', piny.training, 'snapshot')
    for name in ('__init__', 'log', 'add_sample', 'close'):
        clock.function('log and W&B', piny.tracking.Tracker, name)
    clock.function('training', piny.train_ddp, 'train')
    with contextlib.redirect_stdout(sys.stderr):
        code = piny.train_ddp.main(['--out', 'run'])
    clock.turn()
    print(json.dumps(clock.spent))
    return code


def in_fresh_folder(command, root):
    "Run a command in an empty folder with an empty cache; seconds, and its last line."
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, 'PINY_CACHE': f'{folder}/cache', 'WANDB_MODE': 'offline',
               'PYTHONPATH': str(root)}
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=env, text=True,
                              stdout=subprocess.PIPE)
        seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f'{command[-1]} ended with {done.returncode}')
    return seconds, (done.stdout.strip().splitlines() or [''])[-1]


def install_seconds():
    "How long `pip install` takes in a fresh virtual environment."
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, '-m', 'venv', f'{folder}/venv'], check=True)
        install = [f'{folder}/venv/bin/pip', 'install', '-q', '-e', str(ROOT)]
        subprocess.run(install, check=True, stdout=sys.stderr)
        return time.perf_counter() - start


def measured_round(root):
    "The demo of a checkout in a process of its own: seconds of its parts, and the whole."
    child = [sys.executable, str(Path(__file__).resolve()), '--child']
    seconds, line = in_fresh_folder(child, root)
    print(f'{root.name}: {seconds:.0f} s', file=sys.stderr)
    return dict(json.loads(line), whole=seconds)


def medians(rounds):
    "The median of each part."
    return {name: statistics.median(parts[name] for parts in rounds) for name in rounds[0]}


def machine():
    "What the seconds depend on."
    import torch

    from piny.machine import matmul_flops
    product = matmul_flops(torch.device('cpu'), torch.float32)
    return dict(processor=processor(), cores=os.cpu_count(), torch=torch.__version__,
                gflops_of_a_product=round(product / 1e9))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--install', action='store_true', help='time pip install, too')
    parser.add_argument('--beside', type=Path, metavar='CHECKOUT',
                        help='another checkout, to compare with')
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.exit(one_round())

    roots = [ROOT] + ([options.beside.resolve()] if options.beside else [])
    rounds = [[measured_round(root) for root in roots] for _ in range(options.rounds)]
    ours, *others = map(medians, zip(*rounds))

    path = HERE/'time-to-story.json'
    install = json.loads(path.read_text()).get('install') if path.is_file() else None
    if options.install:
        install = install_seconds()
    result = dict(**machine(), rounds=len(rounds), install=install, seconds=ours)
    if others:
        result['beside'] = others[0]
    path.write_text(json.dumps(result, indent=1) + '\n')
    for name, seconds in dict(install=install, **ours).items():
        if seconds is not None:
            print(f'{name:12} {seconds:6.1f} s')


if __name__ == '__main__':
    main()
