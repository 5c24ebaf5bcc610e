"""What can be measured in the stories of a trained checkpoint. Writes `quality.json`.

    python nbs/results/quality.py --checkpoint piny-mini --data PATH [--n 200]

The loss is that of all validation stories; the stories told go on from four words of a
held-out one.
"""
import argparse
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent


def measure(checkpoint, data, n):
    "Measure a checkpoint, and write what was measured."
    from piny.dataset import read_stories
    from piny.evaluation import evaluate
    from piny.measures import measure_model
    from piny.pretrained import load_checkpoint

    model, tokenizer = load_checkpoint(checkpoint)
    loss = evaluate(model, tokenizer, read_stories(data, 'validation'), progress=True)
    everything = 1_000_000  # stories to search for copies
    result = dict(parameters=model.num_parameters(), loss=loss,
                  **measure_model(model, tokenizer, data, n, train_stories=everything))
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (HERE/'quality.json').write_text(text + '\n')
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoint', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--n', type=int, default=200, help='stories to tell (default: 200)')
    options = parser.parse_args()
    result = measure(options.checkpoint, options.data, options.n)
    print(json.dumps({key: result[key] for key in ('model', 'data')}, indent=1))


if __name__ == '__main__':
    main()
