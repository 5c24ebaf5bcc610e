"""What can be measured in the stories of a trained checkpoint. Writes `quality.json` beside itself.

    python nbs/results/quality.py --checkpoint RUN --data PATH [--n 200]

The loss is that of all validation stories; the stories told go on from four words of a held-out one.
"""
import argparse, json, time
from itertools import islice
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument('--checkpoint', required=True)
parser.add_argument('--data', required=True)
parser.add_argument('--n', type=int, default=200, help='stories to tell (default: 200)')
options = parser.parse_args()

from piny.dataset import read_stories
from piny.evaluation import evaluate
from piny.measures import report
from piny.model import load_checkpoint

model, tokenizer = load_checkpoint(options.checkpoint)
start = time.perf_counter()
loss = evaluate(model, tokenizer, read_stories(options.data, 'validation'), progress=True)
seconds = time.perf_counter() - start
found = dict(parameters=model.num_parameters(), loss=loss, seconds=seconds, **report(model, tokenizer, options.data, options.n))
(Path(__file__).resolve().parent/'quality.json').write_text(json.dumps(found, indent=1, ensure_ascii=False) + '\n')
print(json.dumps({key: found[key] for key in ('model', 'data')}, indent=1))
