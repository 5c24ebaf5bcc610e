"""What the model loses without one of its parts, as the pages of its parts show it.

The numbers are those of `results/experiments.py --group ablations`: rows in
`results/experiments/`, one for each change and seed.
"""
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

ROWS = Path(__file__).resolve().parent/'results'/'experiments'
PLAIN = 'plain'  # the model as it is
FAR_OFF = 'no-norm'  # it would widen every figure; pages tell of it in words
PROMPT = 'Lily lost her ball. She was sad.'
SHOWN = 150  # letters of a story
SEED_MARKS = 'os^Dv'  # seed 0, 1, …; shapes, so that no colour need be told from another


def read_rows(
    name: str,  # of an experiment
) -> list[dict]:
    "What the runs of an experiment left, by their seeds."
    paths = ROWS.glob(f'{name}-[0-9].json')
    return sorted((json.loads(path.read_text()) for path in paths),
                  key=lambda row: row['seed'])


def changes(
    name: str,  # of an experiment
    baseline: str = PLAIN,  # what it is compared with
) -> list[float]:  # shares of the baseline's bits per byte; below 0 is better
    "By how much an experiment differs from another, for each seed that both have."
    plain = {row['seed']: row['bits_per_byte'] for row in read_rows(baseline)}
    return [row['bits_per_byte'] / plain[row['seed']] - 1 for row in read_rows(name)
            if row['seed'] in plain]


def signed(
    percent: float,  # of a change
) -> str:
    "A number with its sign."
    return f'{percent:+.1f}'.replace('-', '−')


def story_start(
    row: dict,  # of one run
) -> str:  # Markdown that fits into a table
    "How a run's model goes on from the book's example."
    words = row['story'].removeprefix(PROMPT).split()
    text = ' '.join(words)
    if len(text) > SHOWN:
        text = text[:SHOWN].rsplit(' ', 1)[0] + ' …'
    return re.sub(r'([\\|*_`$<\[\]])', r'\\\1', text)


def loss_range() -> tuple[float, float]:
    "The losses of all ablations, with a margin: pages with one axis can be compared."
    plain = read_rows(PLAIN)[0]
    rows = [json.loads(path.read_text()) for path in ROWS.glob('*.json')]
    losses = [row['bits_per_byte'] for row in rows
              if row['tokens'] == plain['tokens'] and row['name'] != FAR_OFF
              and row['fields']['vocab_size'] == plain['fields']['vocab_size']]
    margin = 0.06 * (max(losses) - min(losses))
    return min(losses) - margin, max(losses) + margin


def draw_ablations(
    names: Sequence[str],  # experiments
) -> None:
    "A mark for each seed, a bar for their mean; a line is the plain model's mean."
    names = [PLAIN, *names]
    fig, ax = plt.subplots(figsize=(7, 1.5 + 0.34 * len(names)), layout='constrained')
    for place, name in enumerate(names):
        losses = {row['seed']: row['bits_per_byte'] for row in read_rows(name)}
        mean, color = statistics.mean(losses.values()), 'C0'
        if name == PLAIN:
            color = '0.35'
            ax.axvline(mean, color=color, linewidth=1, linestyle='--')
        ax.plot(mean, place, '|', color=color, markersize=20, markeredgewidth=2.5)
        for seed, loss in losses.items():
            ax.plot(loss, place, SEED_MARKS[seed], color=color, fillstyle='none')
    for seed in range(max(len(read_rows(name)) for name in names)):
        ax.plot([], SEED_MARKS[seed], color='0.35', fillstyle='none', label=f'seed {seed}')
    ax.plot([], '|', color='0.35', markersize=12, markeredgewidth=2.5, label='mean')
    fig.legend(loc='outside upper right', ncols=4, frameon=False)
    ax.set_yticks(range(len(names)), [read_rows(name)[0]['question'] for name in names])
    ax.set(xlabel='validation loss (bits per byte; left is better)', xlim=loss_range(),
           ylim=(len(names) - 0.4, -0.6))
    plt.show()


def ablation_table(
    names: Sequence[str],  # experiments
) -> Markdown:
    "Each change in percent of the plain model's loss, and a story of its first seed."
    lines = ['| model | against the plain one, same seed (%) | mean (%) '
             '| how it goes on, seed 0 |', '|:---|---:|---:|:-----------|']
    for name in [PLAIN, *names]:
        row, percents = read_rows(name)[0], [100 * change for change in changes(name)]
        seeds = ', '.join(map(signed, percents))
        mean = signed(statistics.mean(percents))
        if name == PLAIN:
            seeds = mean = '–'
        lines.append(f'| {row["question"]} | {seeds} | {mean} | {story_start(row)} |')
    return Markdown('\n'.join(lines))


def seed_sentence() -> Markdown:
    "How far chance alone moves the plain model."
    losses = [row['bits_per_byte'] for row in read_rows(PLAIN)]
    percent = 100 * (max(losses) / min(losses) - 1)
    n_seeds = {2: 'two', 3: 'three'}.get(len(losses), len(losses))
    return Markdown(f'The {n_seeds} plain models, which differ in nothing but their '
                    f'seeds, lie up to {percent:.1f}% apart.')


def show_ablations(
    *names: str,  # experiments
) -> None:
    "All that a page shows of its ablations."
    draw_ablations(names)
    display(ablation_table(names), seed_sentence())
