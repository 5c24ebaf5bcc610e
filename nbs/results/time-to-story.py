"""Where the demo's time goes, from nothing to a told story. Writes `time-to-story.json` beside itself.

    python nbs/results/time-to-story.py [--rounds 3] [--install]

With `--install` a fresh virtual environment is made first, and `pip install` timed once; it needs an index of packages.
Each round is a process of its own with an empty cache. A second is counted once: in the innermost part that it belongs to.
"""
import argparse, contextlib, json, os, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
PARTS = ['import', 'text', 'tokenizer', 'encoding', 'training', 'validation', 'telling', 'figures', 'saving', 'log and W&B', 'the rest']


class Clock:
    "Seconds of parts; a part that begins inside another takes its time from it."
    def __init__(self): self.spent, self.open, self.last = dict.fromkeys(PARTS, 0.0), [], time.perf_counter()

    def turn(self):
        now = time.perf_counter()
        self.spent[self.open[-1] if self.open else 'the rest'] += now - self.last
        self.last = now

    @contextlib.contextmanager
    def part(self, name):
        self.turn(); self.open.append(name)
        try: yield
        finally: self.turn(); self.open.pop()

    def function(self, name, owner, attribute):
        "Counts calls of a function or method under a name."
        real = getattr(owner, attribute)
        def timed(*args, **kwargs):
            with self.part(name): return real(*args, **kwargs)
        setattr(owner, attribute, timed)

    def generator(self, name, owner, attribute):
        "Counts what a generator takes to give its items."
        real = getattr(owner, attribute)
        def timed(*args, **kwargs):
            items = iter(real(*args, **kwargs))
            while True:
                with self.part(name):
                    item = next(items, self)
                if item is self: return
                yield item
        setattr(owner, attribute, timed)


def one_round():
    "The demo in this process; prints the seconds of each part as JSON."
    clock = Clock()
    with clock.part('import'):
        import piny.dataset, piny.train_ddp, piny.training
    clock.generator('text', piny.dataset, 'raw_stories')
    clock.function('tokenizer', piny.training.Tokenizer, 'train')
    clock.function('encoding', piny.training, 'prepare')
    clock.function('validation', piny.training, 'validate')
    clock.generator('telling', piny.training, 'stream')
    clock.function('figures', piny.training, 'plot_runs')
    clock.function('saving', piny.training, 'snapshot')
    for name in ('__init__', 'log', 'tell', 'close'): clock.function('log and W&B', piny.training.Tracker, name)
    real = piny.train_ddp.train
    def train(*args, **kwargs):
        with clock.part('training'): return real(*args, **kwargs)
    piny.train_ddp.train = train
    with contextlib.redirect_stdout(sys.stderr): code = piny.train_ddp.main(['--out', 'run'])
    clock.turn()
    print(json.dumps(clock.spent))
    return code


def in_fresh_folder(command, **env):
    "Runs a command in an empty folder with an empty cache; seconds, and its last line."
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env={**os.environ, 'PINY_CACHE': f'{folder}/cache', 'WANDB_MODE': 'offline', **env}, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - start
    if done.returncode: sys.exit(f'{command[-1]} ended with {done.returncode}')
    return seconds, (done.stdout.strip().splitlines() or [''])[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--install', action='store_true', help='time pip install, too')
    parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child: sys.exit(one_round())
    rounds = []
    for i in range(options.rounds):
        seconds, line = in_fresh_folder([sys.executable, str(Path(__file__).resolve()), '--child'])
        rounds.append(dict(json.loads(line), whole=seconds))
        print(f'round {i + 1} of {options.rounds}: {seconds:.0f} s', file=sys.stderr)
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    path = HERE/'time-to-story.json'
    install = json.loads(path.read_text()).get('install') if path.is_file() else None
    if options.install:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            subprocess.run([sys.executable, '-m', 'venv', f'{folder}/venv'], check=True)
            subprocess.run([f'{folder}/venv/bin/pip', 'install', '-q', '-e', str(ROOT)], check=True, stdout=sys.stderr)
            install = time.perf_counter() - start
    path.write_text(json.dumps(dict(rounds=len(rounds), cores=os.cpu_count(), install=install, seconds=median), indent=1) + '\n')
    for name, seconds in dict(install=install, **median).items():
        if seconds is not None: print(f'{name:12} {seconds:6.1f} s')


if __name__ == '__main__': main()
