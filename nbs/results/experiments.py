"""Experiments in training, one change at a time, on real text. Writes `experiments.json`.

    PINY_STORIES=FOLDER python nbs/results/experiments.py --work FOLDER [NAME …]

Without names all experiments run, in their order. What has ended is not run again; what was
cut off goes on from its last checkpoint. Each run is a command of its own, which stands in
its row, so that anybody can repeat it alone.
"""
import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULT = HERE/'experiments.json'

# The shapes that experiments are made with.
SMALL = dict(vocab_size=2048, dim=128, hidden_dim=352, n_layers=4, n_heads=4, n_kv_heads=2)
MINI: dict = {}  # the preset's own

# The card's recipe: its warm-up, cosine and tail, as shares of the run.
CARD = dict(optimizer='adamw', learning_rate=9e-4, warmup=50/10_300, decay=6_000/10_300,
            final_ratio=0.1)
# What is tried against it: Muon, and a cosine that ends at nothing with the run.
TUNED = dict(optimizer='muon', learning_rate=6e-3, warmup=0.02, decay=1.0, final_ratio=0.0)


@dataclasses.dataclass(frozen=True)
class Experiment:
    "One change, what it is to answer, and how long it trains."
    name: str
    question: str
    fields: dict  # of `TrainConfig`; `warmup` and `decay` as shares of the run
    shape: dict = dataclasses.field(default_factory=lambda: dict(SMALL))
    tokens: int = 2_000_000  # to train on
    seeds: tuple = (0,)


def small(name, question, recipe, seeds=(0,), shape=None, **changes):
    "An experiment at a million parameters and two million tokens."
    return Experiment(name, question, {**recipe, **changes}, {**SMALL, **(shape or {})},
                      seeds=seeds)


EXPERIMENTS = [
    small('muon-3e-3', 'Which rate for Muon?', TUNED, learning_rate=3e-3),
    small('muon-6e-3', 'Which rate for Muon?', TUNED, seeds=(0, 1)),
    small('muon-12e-3', 'Which rate for Muon?', TUNED, learning_rate=12e-3),
    small('batch-4096', 'Is a smaller batch better?', TUNED, tokens_per_step=4096),
    small('batch-16384', 'Is a larger batch better?', TUNED, tokens_per_step=16384),
    small('card', "The card's recipe at its own rate", CARD),
    small('card-2e-3', "The card's recipe, a higher rate", CARD, learning_rate=2e-3),
    small('card-4e-3', "The card's recipe, a higher rate", CARD, learning_rate=4e-3),
    small('card-8e-3', "The card's recipe, a higher rate", CARD, learning_rate=8e-3),
    small('tail', 'Does the tail at a tenth of the rate help Muon?', TUNED, decay=0.58,
          final_ratio=0.1),
    small('adamw-to-zero', 'How much of it is the schedule?', TUNED, optimizer='adamw',
          learning_rate=4e-3),
    small('decay-0', 'Does weight decay matter?', TUNED, weight_decay=0.0),
    small('decay-0.3', 'Does weight decay matter?', TUNED, weight_decay=0.3),
    small('stream', 'Windows of whole stories, or cut from the stream?', TUNED,
          packing='stream'),
    small('context-256', 'Is a shorter window enough?', TUNED, seq_len=256),
    small('std-0.04', 'Larger first weights?', TUNED, shape=dict(init_std=0.04)),
    small('deep', 'Depth against width', TUNED,
          shape=dict(dim=96, hidden_dim=256, n_layers=8)),
    small('wide', 'Depth against width', TUNED,
          shape=dict(dim=192, hidden_dim=512, n_layers=1, n_heads=6)),
    small('vocabulary-1024', 'How many pieces?', TUNED, shape=dict(vocab_size=1024)),
    small('vocabulary-4096', 'How many pieces?', TUNED, shape=dict(vocab_size=4096)),
]


def options(experiment, seed):
    "The options of `python -m piny.train_ddp` for a run, without data and folder."
    fields = {'seq_len': 512, 'tokens_per_step': 8192, **experiment.fields}
    steps = experiment.tokens // fields['tokens_per_step']
    fields['max_steps'] = steps
    fields['warmup_steps'] = max(1, round(fields.pop('warmup') * steps))
    fields['decay_steps'] = max(1, round(fields.pop('decay') * steps))
    fields['eval_every'] = max(1, steps // 8)
    fields['save_every'] = steps
    words = ['--preset', 'mini']
    values = dict(eval_stories=884, seed=seed, **experiment.shape, **fields)
    for name, value in values.items():
        words += [f'--{name}', str(value)]
    return words


def train(experiment, seed, run):
    "Train, or train on; raises if that fails."
    command = [sys.executable, '-m', 'piny.train_ddp']
    if (run/'checkpoints'/'latest').is_file():
        command += ['--resume', str(run)]
    else:
        command += options(experiment, seed)
        command += ['--data', os.environ['PINY_STORIES'], '--out', str(run)]
    environment = {**os.environ, 'WANDB_MODE': 'disabled'}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def row_of(experiment, seed, run):
    "What is kept of a run: its command, its losses, and where and when they were made."
    import torch

    from piny.tracking import read_metrics
    lines = read_metrics(run)
    curve = [[line['tokens'], round(line['val_bits_per_byte'], 5)]
             for line in lines if 'val_loss' in line]
    training = [line['train_loss'] for line in lines if 'train_loss' in line]
    last = max(1, len(training) // 50)
    command = ['python', '-m', 'piny.train_ddp', '--data', '$PINY_STORIES']
    return dict(
        name=experiment.name, question=experiment.question, seed=seed,
        date=str(datetime.date.today()), tokens=lines[-1]['tokens'],
        bits_per_byte=curve[-1][1], best=min(bits for _, bits in curve),
        train_loss=round(sum(training[-last:]) / last, 4), curve=curve,
        command=' '.join(command + options(experiment, seed)),
        processor=platform.machine(), torch=torch.__version__)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help='run these only')
    parser.add_argument('--work', required=True, type=Path, help='folder of the runs')
    parsed = parser.parse_args()
    if 'PINY_STORIES' not in os.environ:
        parser.error('PINY_STORIES is not set; give it a folder of stories')
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    if unknown := set(parsed.names) - by_name.keys():
        parser.error(f'no such experiment: {", ".join(sorted(unknown))}; '
                     f'there are {", ".join(by_name)}')
    rows = json.loads(RESULT.read_text()) if RESULT.exists() else []
    for name in parsed.names or by_name:
        for seed in by_name[name].seeds:
            if any(row['name'] == name and row['seed'] == seed for row in rows):
                continue
            run = parsed.work/f'{name}-{seed}'
            train(by_name[name], seed, run)
            rows.append(row_of(by_name[name], seed, run))
            RESULT.write_text(json.dumps(rows, indent=1) + '\n')
            print(f'{name:20} seed {seed}: {rows[-1]["bits_per_byte"]:.4f} bits per byte '
                  f'after {rows[-1]["tokens"]:,} tokens', flush=True)


if __name__ == '__main__':
    main()
