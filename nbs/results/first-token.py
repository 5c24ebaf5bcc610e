"""How soon the command line tells its first token. Writes `first-token.json`.

    python nbs/results/first-token.py [--rounds 9]

Each start is a process of its own, with the built-in weights, timed from its start to the
first letter after the prompt, in turns: with the compiled step still to be made (an empty
folder for it each time), and with the step on disk, where the time to the end of the
process is kept too.
"""
import argparse
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
PROMPT = 'The dragon was hungry'


def run(command, step_folder, folder):
    "A process that keeps the compiled step in a folder of its own."
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'NUMBA_CACHE_DIR': str(step_folder)}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def time_start(step_folder, folder, to_the_end):
    "Seconds to the first letter after the prompt, and to the end where that is asked for."
    start = time.perf_counter()
    command = ['-m', 'piny.sampling', PROMPT, '--seed', '0', '--checkpoint', 'piny-mini']
    process = run(command, step_folder, folder)
    text = b''
    while len(text) <= len(PROMPT):
        letters = os.read(process.stdout.fileno(), 4096)
        if not letters:
            sys.exit('the command told nothing')
        text += letters
    first = time.perf_counter() - start
    if not to_the_end:
        process.kill()  # before it compiles the step
    process.communicate()
    return first, time.perf_counter() - start


def summary(seconds):
    "Median, least and most."
    return dict(median=statistics.median(seconds), least=min(seconds), most=max(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=9)
    options = parser.parse_args()
    fresh, compiled, to_the_end = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder)/'ready'
        code = 'from piny.compiled_step import compile_all; compile_all()'
        run(['-c', code], ready, folder).communicate()
        for turn in range(options.rounds):
            fresh.append(time_start(Path(folder)/f'empty-{turn}', folder, False)[0])
            first, end = time_start(ready, folder, True)
            compiled.append(first)
            to_the_end.append(end)
    import torch
    result = dict(processor=processor(), cores=os.cpu_count(), torch=torch.__version__,
                  rounds=options.rounds,
                  seconds={'first token, nothing compiled': summary(fresh),
                           'first token, compiled': summary(compiled),
                           'whole command, compiled': summary(to_the_end)})
    (HERE/'first-token.json').write_text(json.dumps(result, indent=1) + '\n')
    for name, measured in result['seconds'].items():
        print(f'{name:30} {measured["median"]:5.2f} s '
              f'({measured["least"]:.2f} to {measured["most"]:.2f})')


if __name__ == '__main__':
    main()
