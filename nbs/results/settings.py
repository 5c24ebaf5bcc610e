"""Which settings of sampling tell the best stories? Readers mark them without knowing.

    python nbs/results/settings.py tell --work FOLDER --earlier OLD [--rounds N …]
    python nbs/results/settings.py gather --work FOLDER --data STORIES

`tell` has weights tell stories in six rounds, some ten minutes on two cores: the first
five by the built-in weights of that time, four million, which OLD holds; in the sixth the
present ones are compared with them, and some settings once more.
FOLDER/ROUND/sheet-N.txt holds the stories of some beginnings by all settings of the round,
shuffled; how to mark them stands at its top. A reader, who is not shown the keys beside
the rounds, writes FOLDER/ROUND/marks-N.json. `gather` puts all marks into `settings.json`,
and what of each story stands in the training stories, in runs of eight words or more.
"""
import argparse
import functools
import json
import random
import runpy
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = 'grammar', 'sense', 'joy'
N_SHEETS = 7

# What the library's defaults were, and what each round compares with them.
BEFORE = dict(temperature=0.8, top_p=0.95, min_p=None, repetition_penalty=1.0)


def changed(temperature=0.8, min_p=None, penalty=1.0):
    "Settings; with a min-p there is no top-p."
    top_p = BEFORE['top_p'] if min_p is None else None
    return dict(temperature=temperature, top_p=top_p, min_p=min_p,
                repetition_penalty=penalty)


EVEN, ODD, ALL = slice(0, None, 2), slice(1, None, 2), slice(None)
ROUNDS = [  # which of the beginnings, seeds, settings
    (EVEN, (100, 200), [changed(), changed(0.6), changed(0.4), changed(min_p=0.1)]),
    (ODD, (300, 400), [changed(), changed(min_p=0.1), changed(min_p=0.2),
                       changed(0.6, 0.1), changed(1.0, 0.2), changed(0.5)]),
    (ALL, (500,), [changed(), changed(1.0, 0.2), changed(1.0, 0.3), changed(1.2, 0.2),
                   changed(1.2, 0.3), changed(1.0, 0.1)]),
    (ALL, (600,), [changed(), changed(1.0, 0.3), changed(1.0, 0.3, 1.05),
                   changed(1.0, 0.3, 1.1), changed(1.0, 0.4), changed(1.0, 0.2, 1.1)]),
    (ALL, (700,), [changed(), changed(1.0, 0.2, 1.1), changed(penalty=1.1),
                   changed(1.0, 0.2, 1.2), changed(1.0, 0.1, 1.1),
                   changed(0.8, 0.2, 1.1)]),
    (ALL, (800,), [changed(), changed(1.0, 0.2, 1.1), changed(1.0, 0.1, 1.1),
                   changed(1.0, 0.2), changed(0.8, 0.1, 1.05)]),
]
EVERY_ROUND = range(1, len(ROUNDS) + 1)


def contestants(number):
    "Of a round: which weights tell by which settings."
    all_settings = ROUNDS[number - 1][2]
    if number < 6:
        return [('earlier', settings) for settings in all_settings]
    return [('earlier', changed(1.0, 0.2, 1.1)), *(('present', s) for s in all_settings)]


TASK = '''Stories for children, written by machines. Each begins with a line "=== NUMBER"
and the beginning that the machine was given. Read every story, in order, and give it three
marks from 0 to 4; be strict and even, and use the whole range:
- grammar: 4 nothing worth a red pen (no wrong words, no made-up words, no broken
  sentences), 2 some faults, 0 hardly readable.
- sense: 4 events follow from one another, fit the beginning, and the end fits; 2 one can
  follow it but some things come from nowhere; 0 cannot be followed.
- joy: 4 a child would like to hear this story; it has something happening, is not a mere
  repetition of the same sentence, and comes to an end; 0 nobody would.
Many stories go on from the same beginning; compare those with one another. The result is a
JSON list of objects {"k": NUMBER, "grammar": G, "sense": S, "joy": Y}; name it as this
sheet, with marks for sheet and json for txt.

'''


def repetition(story):
    "The share of runs of four words that came before in the same story."
    words = story.lower().split()
    runs = [tuple(words[i:i + 4]) for i in range(len(words) - 3)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def tell_round(load, number, beginnings):
    "A round's stories, in the order of contestants, seeds and beginnings."
    from piny.sampling import generate
    which, seeds, _ = ROUNDS[number - 1]
    beginnings = beginnings[which]
    rows = []
    for weights, settings in contestants(number):
        for seed in seeds:
            told = generate(*load(weights), beginnings, details=True, seed=seed,
                            **settings)
            told_by = dict(weights=weights, settings=settings, seed=seed)
            rows += [dict(told_by, prompt=beginnings[i], text=sequence.text,
                          sheet=i * N_SHEETS // len(beginnings),
                          ended=sequence.finish_reason)
                     for i, sequence in enumerate(told)]
    return rows


def write_sheets(work, number, rows):
    "Number the stories of each sheet; write a round's sheets, and the key to them."
    folder = work/str(number)
    sheets = [[] for _ in range(N_SHEETS)]
    for row in rows:
        sheet = sheets[row['sheet']]
        row['k'] = len(sheet)
        sheet.append(f'=== {row["k"]}\n[beginning: {row["prompt"]}]\n{row["text"]}\n')
    folder.mkdir(parents=True, exist_ok=True)
    for i, stories in enumerate(sheets):
        (folder/f'sheet-{i}.txt').write_text(TASK + '\n'.join(stories), encoding='utf-8')
    key = json.dumps(rows, indent=1, ensure_ascii=False)
    (work/f'key-{number}.json').write_text(key, encoding='utf-8')


def tell(work, earlier, rounds):
    "Tell the stories of some rounds, shuffled onto sheets for readers."
    from piny.decoder import Decoder
    from piny.pretrained import load_checkpoint
    from piny.prompt_sheet import read_prompt_sheet

    @functools.cache
    def load(weights):
        model, tokenizer = load_checkpoint(earlier if weights == 'earlier' else 'piny-mini')
        return Decoder(model), tokenizer

    own = runpy.run_path(str(HERE/'piny-mini.py'))['PROMPTS']
    beginnings = own + [question.prompt for question in read_prompt_sheet()]
    for number in rounds:
        rows = tell_round(load, number, beginnings)
        random.Random(number).shuffle(rows)
        write_sheets(work, number, rows)
        print(f'round {number}: {len(rows)} stories', flush=True)


def gather(work, data):
    "Put the marks of all rounds into one file: a line for each story, by round, settings."
    from piny.dataset import read_stories
    from piny.measures import CopyDetector
    detector, groups = CopyDetector(list(read_stories(data, 'train'))), []
    for number in EVERY_ROUND:
        folder, marks = work/str(number), {}
        for i in range(N_SHEETS):
            for mark in json.loads((folder/f'marks-{i}.json').read_text('utf-8')):
                marks[i, mark['k']] = [mark[kind] for kind in KINDS]
        key = json.loads((work/f'key-{number}.json').read_text('utf-8'))
        for weights, settings in contestants(number):
            rows = [[row['prompt'], row['seed'], row['ended'],
                     round(repetition(row['text']), 4),
                     round(detector.copied(row['text']).share, 4),
                     *marks[row['sheet'], row['k']]]
                    for row in key
                    if (row['weights'], row['settings']) == (weights, settings)]
            lines = ',\n'.join(json.dumps(row, ensure_ascii=False) for row in sorted(rows))
            head = json.dumps(dict(round=number, weights=weights, settings=settings))
            groups.append(f'{head[:-1]}, "stories": [\n{lines}]}}')
    text = '[' + ',\n'.join(groups) + ']\n'
    (HERE/'settings.json').write_text(text, encoding='utf-8')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('tell', 'gather'))
    parser.add_argument('--work', required=True, type=Path, help='folder of the sheets')
    parser.add_argument('--earlier', help='model folder of the earlier weights, for tell')
    parser.add_argument('--rounds', type=int, nargs='+', choices=EVERY_ROUND,
                        default=EVERY_ROUND, help='to tell (all)')
    parser.add_argument('--data', help='folder of stories, for gather')
    options = parser.parse_args()
    if options.what == 'tell':
        if not options.earlier:
            parser.error('tell wants the earlier weights; give their folder by --earlier')
        tell(options.work, options.earlier, options.rounds)
    elif options.data:
        gather(options.work, options.data)
    else:
        parser.error('gather wants the folder of the training stories; give it by --data')


if __name__ == '__main__':
    main()
