"""Which packing learns better: windows cut from the stream, or windows of whole stories?

    PINY_STORIES=FOLDER python nbs/results/packing.py

It takes about an hour on one core, and writes packing.json beside itself.

A window of the second kind begins at a story, and attention stays inside a story. Both see
the same number of tokens, with the same model and order of steps. The loss is that of the
whole validation split.
"""
import argparse
import json
import os
import tempfile
from pathlib import Path

from piny.config import make_config
from piny.metrics import read_metrics
from piny.training import train

MODEL = dict(vocab_size=2048, dim=192, hidden_dim=512, n_layers=4, n_heads=6, n_kv_heads=2)
STEPS = dict(seq_len=512, tokens_per_step=8192, max_steps=240, decay_steps=240,
             warmup_steps=20, learning_rate=4e-3, optimizer='muon', schedule='cosine',
             eval_every=80, eval_stories=100_000, save_every=1000, device='cpu')


def evaluations(packing, seed, folder):
    "Train once; the lines of its log that hold a validation."
    config = make_config('mini', data=os.environ['PINY_STORIES'], packing=packing,
                         seed=seed, out=f'{folder}/{packing}-{seed}', **MODEL, **STEPS)
    lines = [line for line in read_metrics(train(config)) if 'val_loss' in line]
    for line in lines:
        line.pop('time', None)
    return lines


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if 'PINY_STORIES' not in os.environ:
        parser.error('PINY_STORIES is not set; give it a folder of stories')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1):
            for packing in ('stream', 'stories'):
                lines = evaluations(packing, seed, folder)
                rows.append(dict(packing=packing, seed=seed, evaluations=lines))
    result = dict(command='python nbs/results/packing.py', model=MODEL, training=STEPS,
                  data='the real sample (PINY_STORIES), all 884 validation stories',
                  runs=rows)
    Path(__file__).with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    for row in rows:
        losses = [f'{line["tokens"]:,}: {line["val_loss"]:.4f}'
                  for line in row['evaluations']]
        print(row['packing'], row['seed'], *losses)


if __name__ == '__main__':
    main()
