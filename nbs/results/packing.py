"""Which packing learns better: windows cut from the stream, or windows that begin at a story, with attention inside it?

    PINY_STORIES=FOLDER python nbs/results/packing.py      about an hour on one core; writes packing.json beside itself

Both see the same number of tokens, with the same model and order of steps. The loss is that of the whole validation split.
"""
import dataclasses, json, os, tempfile
from pathlib import Path

from piny.training import make_config, train

MODEL = dict(vocab_size=2048, dim=192, hidden_dim=512, n_layers=4, n_heads=6, n_kv_heads=2)
STEPS = dict(seq_len=512, tokens_per_step=8192, max_steps=240, decay_steps=240, warmup_steps=20, learning_rate=4e-3, optimizer='muon',
             eval_every=80, eval_stories=100_000, save_every=1000, device='cpu')


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (0, 1):
            for packing in ('stream', 'stories'):
                run = train(make_config('mini', data=os.environ['PINY_STORIES'], packing=packing, seed=seed, out=f'{folder}/{packing}-{seed}', **MODEL, **STEPS))
                lines = [json.loads(line) for line in (run/'metrics.jsonl').read_text().splitlines()]
                rows.append(dict(packing=packing, seed=seed, evaluations=[line for line in lines if 'val_loss' in line]))
                for line in rows[-1]['evaluations']: line.pop('time', None)
    result = dict(command='python nbs/results/packing.py', model=MODEL, training=STEPS, data='the real sample (PINY_STORIES), all 884 validation stories', runs=rows)
    Path(__file__).with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')
    for row in rows: print(row['packing'], row['seed'], *(f'{e["tokens"]:,}: {e["val_loss"]:.4f}' for e in row['evaluations']))


if __name__ == '__main__': main()
