"""What can be measured in the stories of a trained checkpoint. Writes `quality.json`.

    python nbs/results/quality.py --checkpoint RUN --data PATH [--n 200]

The loss is that of all validation stories; the stories told go on from four words of a
held-out one.
"""
import argparse
import json
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--n', type=int, default=200, help='stories to tell (default: 200)')
    options = parser.parse_args()

    from piny.dataset import read_stories
    from piny.evaluation import evaluate
    from piny.measures import measure_model
    from piny.pretrained import load_checkpoint

    model, tokenizer = load_checkpoint(options.checkpoint)
    start = time.perf_counter()
    stories = read_stories(options.data, 'validation')
    loss = evaluate(model, tokenizer, stories, progress=True)
    seconds = time.perf_counter() - start
    result = dict(parameters=model.num_parameters(), loss=loss, seconds=seconds,
                  **measure_model(model, tokenizer, options.data, options.n))
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (HERE/'quality.json').write_text(text + '\n')
    print(json.dumps({key: result[key] for key in ('model', 'data')}, indent=1))


if __name__ == '__main__':
    main()
