"""From a student of `distil.py` to the weights that come with the library.

    python nbs/results/piny-mini.py --work WORK --data FOLDER

Takes the student of the folder WORK, whose weights are rounded to bfloat16 already, and
what was measured on the way; the tokenizer stays as it is. Writes `piny/assets/piny-mini/`
with its model card, `distil.json` here, `quality.json` with the measures, and
`piny-mini.json` with a story for each prompt.
"""
import argparse
from pathlib import Path

from quality import measure

from piny.files import read_json, write_file, write_json

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1]/'piny'/'assets'/'piny-mini'
RESULT = Path(__file__).with_suffix('.json')
# Written without a look at the data.
PROMPTS = [
    'The dragon was hungry', 'Grandma opened the old box and', 'A robot named Beep',
    'It was the coldest morning of the year,', '"Wake up!" said', 'Sam and Mia found a map',
    'Nobody in the village believed that', 'Deep in the sea there lived',
    'The moon looked down and', 'My brother never shares his']


def tell(data):
    "Tell a story to each prompt of the sheet and to those above; look for copies."
    from piny.dataset import read_stories
    from piny.decoder import Decoder
    from piny.measures import CARD_PROMPTS, CopyDetector
    from piny.pretrained import load_checkpoint
    from piny.prompt_sheet import read_prompt_sheet
    from piny.sampling import generate
    model, tokenizer = load_checkpoint('piny-mini')
    sheet = [question.prompt for question in read_prompt_sheet()]
    prompts = CARD_PROMPTS + PROMPTS + sheet
    sequences = generate(Decoder(model), tokenizer, prompts, details=True, seed=0,
                         progress=True)
    detector = CopyDetector(list(read_stories(data, 'train')))
    told = []
    for prompt, sequence in zip(prompts, sequences):
        copied = detector.copied(sequence.text)
        told.append(dict(prompt=prompt, text=sequence.text, ended=sequence.finish_reason,
                         copied=round(copied.share, 4), longest_copy=copied.longest))
    return told


def describe_data(data):
    "Which stories the student and its teachers have read."
    from piny.dataset import read_stories
    stories = list(read_stories(data, 'train'))
    n_bytes = sum(len(story.encode()) for story in stories)
    return (f'{len(stories):,} stories of TinyStories, {n_bytes / 1e6:.1f} MB: those of a '
            'sample that are whole.')


def span(values):
    "The least and the greatest of some numbers, in words."
    return f'{min(values):g} to {max(values):g}'


def describe_training(record):
    "How the student came about, in a list."
    teachers = [one for one in record['teachers'] if one['in_ensemble']]
    told, student = record['told'], record['students']['student']
    recipe, alone = student['recipe'], [one['bits_per_byte'] for one in teachers]
    of_teachers = {name: span([one['recipe'][name] for one in teachers])
                   for name in ('passes', 'dropout', 'weight_decay')}
    return '\n'.join([
        f'- {len(teachers)} teachers of {teachers[0]["parameters"]:,} parameters: '
        f'{of_teachers["passes"]} passes each, by Muon, with dropout of '
        f'{of_teachers["dropout"]} and weight decay of {of_teachers["weight_decay"]}; '
        f'{min(alone):.3f} to {max(alone):.3f} bits per byte, averaged '
        f'{record["ensemble"]:.3f}',
        f'- {told["stories"]:,} new stories, told by the teachers: '
        f'{told["tokens"] / 1e6:.1f} million tokens',
        f'- the student: {student["steps"]:,} steps, {student["tokens"] / 1e6:.0f} million '
        f'tokens in all, {student["passes"]:.0f} passes over real and told stories. '
        'It learns the averaged probabilities of the teachers, and on real stories, by a '
        f'weight of {student["hard_weight"]}, the next token. Muon, learning rate '
        f'{recipe["learning_rate"]:g} after a warm-up, then a straight line to 0; weight '
        f'decay {recipe["weight_decay"]:g}, seed {recipe["seed"]}'])


def draw(record, path):
    "The losses of teachers and student, as a picture."
    import matplotlib
    matplotlib.use('agg')
    from matplotlib import pyplot as plt
    fig, axes = plt.subplots(figsize=(6, 3), layout='constrained')
    student = record['students']['student']
    millions = student['tokens'] / student['steps'] / 1e6  # tokens of a step
    for n, one in enumerate(one for one in record['teachers'] if one['in_ensemble']):
        steps, _, scores = zip(*one['curve'])
        axes.plot([step * millions for step in steps], scores, 'C0', lw=1,
                  label=None if n else 'teachers')
    axes.axhline(record['ensemble'], color='C0', ls='--', lw=1, label='teachers, averaged')
    steps, _, scores = zip(*student['curve'])
    axes.plot([step * millions for step in steps], scores, 'C1o-', ms=3, label='student')
    axes.set(xlabel='tokens read (millions)', ylabel='bits per byte, held-out stories',
             xlim=0)
    axes.legend(frameon=False)
    fig.savefig(path, dpi=120)


def write_card(record, measured, data):
    "The model card of what was measured."
    from piny.model_card import CARD_TEMPLATE, card_metadata, loss_text, measures_section
    from piny.pretrained import load_checkpoint, read_config
    from piny.sampling import generate
    model, tokenizer = load_checkpoint('piny-mini')
    (story,) = generate(model, tokenizer, PROMPTS[0], seed=0)
    card = CARD_TEMPLATE.format(
        metadata=card_metadata('apache-2.0', ['roneneldan/TinyStories']), name='piny-mini',
        parameters=model.num_parameters(), **vars(read_config(FOLDER)),
        data=describe_data(data), stages=describe_training(record),
        versions=f'With torch {record["torch"]} on an {record["device"]}.',
        loss=loss_text(None, None, measured['loss']), measures=measures_section(measured),
        story='\n'.join(f'> {line}' for line in story.split('\n')))
    write_file(FOLDER/'README.md', card.encode())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work', required=True, type=Path, help="distil.py's folder")
    parser.add_argument('--data', required=True, help='folder of stories')
    parser.add_argument('--n', type=int, default=200, help='stories to measure (200)')
    options = parser.parse_args()
    if not (options.work/'student'/'model.safetensors').is_file():
        parser.error(f'{options.work} has no student; make one with distil.py')
    record = read_json(options.work/'distil.json')
    if record['device'] == 'cpu':
        parser.error(f'{options.work} holds a rehearsal; give a folder made on a GPU')
    for name in ('config.json', 'generation_config.json', 'model.safetensors'):
        write_file(FOLDER/name, (options.work/'student'/name).read_bytes())
    write_json(HERE/'distil.json', record, indent=1)
    draw(record, FOLDER/'loss.png')
    write_card(record, measure('piny-mini', options.data, options.n), options.data)
    told = tell(options.data)
    write_json(RESULT, told, indent=1)
    ended = sum(story['ended'] == 'eos' for story in told)
    longest = max(story['longest_copy'] for story in told)
    print(f'{ended} of {len(told)} ended by themselves; longest copy: {longest} words')


if __name__ == '__main__':
    main()
