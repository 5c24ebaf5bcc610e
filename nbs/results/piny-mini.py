"""From a run to the weights that come with the library: `piny/assets/piny-mini/`.

    python nbs/results/piny-mini.py --run RUN --data PATH

The run's best checkpoint is rounded to bfloat16, so that a weight takes two bytes, and all
that is measured is measured on what was rounded. Writes the folder with its model card,
`quality.json` with the measures, and `piny-mini.json` with a story for each prompt. Where
the run began from `piny-mini`, the folder tells of the earlier training, too.
"""
import argparse
import itertools
import shutil
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
    sequences = generate(Decoder(model), tokenizer, prompts, details=True, seed=0)
    detector = CopyDetector(list(read_stories(data, 'train')))
    told = []
    for prompt, sequence in zip(prompts, sequences):
        copied = detector.copied(sequence.text)
        told.append(dict(prompt=prompt, text=sequence.text, ended=sequence.finish_reason,
                         copied=round(copied.share, 4), longest_copy=copied.longest))
    return told


def earlier_training():
    "What the card and the JSON say of the training of the weights that are there."
    training = (FOLDER/'README.md').read_text().partition('## Training\n\n')[2]
    lines = itertools.takewhile(lambda line: line.startswith('- '), training.split('\n'))
    return list(lines), read_json(RESULT)['stages']


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', required=True, type=Path, help='run folder')
    parser.add_argument('--data', required=True, help='folder of stories')
    parser.add_argument('--n', type=int, default=200, help='stories to measure (200)')
    options = parser.parse_args()

    from piny.finding_weights import find_checkpoint
    from piny.model_card import model_card, training_stages, write_model_folder
    best = find_checkpoint(options.run/'checkpoints'/'best')
    training = training_stages(best)
    began_here = training[0]['init_from'] == 'piny-mini'
    lines, stages = earlier_training() if began_here else ([], [])
    about = dict(name='piny-mini', prompt=PROMPTS[0], license='apache-2.0',
                 datasets=['roneneldan/TinyStories'])
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_model_folder(best, FOLDER, bfloat16=True, **about)
    measured = measure('piny-mini', options.data, options.n)
    card = model_card(best, measured=measured, **about)
    card = card.replace('## Training\n\n', '\n'.join(['## Training', '', *lines, '']))
    write_file(FOLDER/'README.md', card.encode())
    told = tell(options.data)
    stages += [dict(steps=stage['steps'], tokens=stage['steps'] * stage['tokens_per_step'])
               for stage in training]
    write_json(RESULT, dict(stages=stages, told=told), indent=1)
    ended = sum(story['ended'] == 'eos' for story in told)
    longest = max(story['longest_copy'] for story in told)
    print(f'{ended} of {len(told)} ended by themselves; longest copy: {longest} words')


if __name__ == '__main__':
    main()
