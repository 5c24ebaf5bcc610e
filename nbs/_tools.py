"""What the project does to its own pages; exit code 1 where a command finds a fault.

    python nbs/_tools.py execute [PAGE …]  run pages in a fresh kernel, save their outputs
    python nbs/_tools.py readme            make README.md and book_map.svg from index.ipynb
    python nbs/_tools.py site              build the docs site into _docs/, without Quarto
    python nbs/_tools.py look [all]        look at the built site in a browser, two views
                                           or all four
    python nbs/_tools.py check             pages exported, clean, executed; README fresh;
                                           code as _rules.py wants it
    python nbs/_tools.py lint              ruff over pages and scripts, mypy over modules
    python nbs/_tools.py rerun PAGE        run a page again and compare its text outputs
    python nbs/_tools.py package           build the packages, and try them in a bare folder
    python nbs/_tools.py setup_cell        give each page the cell that cloud notebooks need
"""
import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

from _drawing import svg_faults, svg_file
from _look import look
from _publish import package, setup_cell, setup_faults
from _rules import (
    NBS,
    ROOT,
    book_modules,
    book_pages,
    code_faults,
    code_notes,
    directives,
    program,
    without_magics,
)
from _site import SITE, STORYTELLER, site

NOT_RUN = {'slow', 'browser', 'cuda', 'notest'}  # directives of cells that wait for a flag
# calls that return None, so that a cell may end in them and show nothing
SILENT = {'assert_close', 'chdir', 'cleanup', 'close', 'zero_grad'}
# refers to the state of a widget in a kernel that is gone when a page is read
WIDGET = 'application/vnd.jupyter.widget-view+json'
SVG_FIGURES = "--InlineBackend.figure_formats={'svg'}"  # an argument of a kernel
FIGURE_TYPES = {'image/png', 'image/svg+xml'}
NOT_COPIED = ('.git', '_docs', '_proc', 'runs', '*.egg-info', '__pycache__', '.venv',
              '.*_cache')


def pages(names=()):
    "Every page of the book, or the named ones."
    return [Path(name).resolve() for name in names] or book_pages()


def refused(function, *args, error=ValueError, **kwargs):
    "The sentence by which a call is refused; an AssertionError where it is not."
    try:
        function(*args, **kwargs)
    except error as refusal:
        return str(refusal)
    raise AssertionError(f'{function.__name__} took {args} {kwargs}')


# -------------------------------------------------------------------------- running a page

def read(path):
    "A notebook."
    import nbformat
    return nbformat.read(path, as_version=4)


def runs(cell):
    "Is this a code cell that a plain run executes?"
    if cell.cell_type != 'code':
        return False
    names = directives(cell.source)
    return not (NOT_RUN & names.keys() or names.get('eval') == 'false')


def run(notebook, folder):
    "Run what a plain run executes in a fresh kernel; other cells keep their outputs."
    from nbclient import NotebookClient
    client = NotebookClient(notebook, timeout=600, kernel_name='python3',
                            extra_arguments=[SVG_FIGURES],
                            resources={'metadata': {'path': str(folder)}})
    env = dict(os.environ, MATPLOTLIBRC=str(NBS/'matplotlibrc'), SOURCE_DATE_EPOCH='0')
    with client.setup_kernel(env=env):
        for i, cell in enumerate(notebook.cells):
            if runs(cell):
                cell.outputs = []
                client.execute_cell(cell, i)
    notebook.metadata.pop('language_info', None)
    notebook.metadata.pop('widgets', None)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            outputs = [without_widget(output) for output in cell.outputs]
            cell.outputs = merge_streams([output for output in outputs if output])
    return notebook


def without_widget(output):
    """An output without its live widget; its picture or text stays, a bar, all repr, goes.
    Of an SVG only the drawing stays, without the note of when and by what it was made."""
    data = output.get('data', {})
    if 'image/svg+xml' in data:
        drawing = re.sub('<metadata>.*?</metadata>', '', data['image/svg+xml'], flags=re.S)
        data['image/svg+xml'] = drawing[drawing.index('<svg'):]
    if WIDGET in data:
        del data[WIDGET]
        if set(data) <= {'text/plain'}:
            return None
        data.pop('text/plain', None)
    return output


def merge_streams(outputs):
    "Join pieces of one stream and play carriage returns: a bar leaves its last state."
    merged = []
    for output in outputs:
        last = merged[-1] if merged else None
        streams = last and output.output_type == last.output_type == 'stream'
        if streams and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == 'stream':
            lines = output.text.split('\n')
            output.text = '\n'.join(line.rstrip('\r').rsplit('\r', 1)[-1] for line in lines)
    return [output for output in merged
            if output.output_type != 'stream' or output.text.strip()]


def execute(names):
    "Run pages and save their outputs."
    import nbformat
    for path in pages(names):
        before, notebook = path.read_bytes(), read(path)
        print(f'{path.name} …', end=' ', flush=True)
        executed = run(notebook, path.parent)
        if path.read_bytes() != before:
            return [f'{path.name} was edited while it ran; run it again']
        nbformat.write(executed, path)
        subprocess.run([program('nbdev_clean'), '--fname', str(path)], check=True, cwd=ROOT)
        print('saved')
    return []


def text_outputs(notebook):
    "What each code cell that runs shows as text, without addresses in memory."
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            outputs = cell.outputs if runs(cell) else []
            shown = [output.get('text') or output.get('data', {}).get('text/plain')
                     for output in outputs]
            texts.append(re.sub(r' at 0x[0-9a-f]+', '', str(shown)))
    return texts


def rerun(names):
    "Faults: cells whose text output is not what the page shows."
    faults = []
    for path in pages(names):
        saved = text_outputs(read(path))
        fresh = text_outputs(run(read(path), path.parent))
        faults += [f'{path.name}: code cell {i} shows {old[:200]} but a new run gives '
                   f'{new[:200]}'
                   for i, (old, new) in enumerate(zip(saved, fresh))
                   if old != new]
    return faults


# ------------------------------------------------------------------------------ the README

MAP_FILE = NBS/'book_map.svg'  # index.ipynb's diagram, which GitHub shows from a file only


def shown_svg(cell):
    "The diagram that a cell shows; empty if it shows none."
    for output in cell.get('outputs', []):
        html = ''.join(output.get('data', {}).get('text/html', ''))
        if html.startswith('<svg'):
            return html
    return ''


def picture_text():
    "The diagram of index.ipynb as a file."
    return svg_file(next(filter(None, map(shown_svg, read(NBS/'index.ipynb').cells))))


def with_picture(notebook):
    "Put the file of the diagram in the place of the cell that draws it."
    for cell in notebook.cells:
        svg = shown_svg(cell)
        if svg:
            alt = unescape(re.search('aria-label="(.*?)"', svg)[1])
            cell.cell_type, cell.source = 'markdown', f'![{alt}](nbs/{MAP_FILE.name})'
            del cell['outputs']


# for GitHub, where no script runs
STORYTELLER_PICTURE = ('<img src="nbs/storyteller.png" width="420" alt="The storyteller: a '
                       'prompt, its settings, a story, the tokens that may come next">')


def readme_text():
    "index.ipynb as Markdown, through the same processing as its docs page."
    from execnb.nbio import read_nb, write_nb
    from nbconvert import MarkdownExporter
    from nbdev.processors import FilterDefaults
    notebook = read_nb(NBS/'index.ipynb')
    FilterDefaults()(notebook)
    with_picture(notebook)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/'index.ipynb'
        write_nb(notebook, path)
        body, _ = MarkdownExporter().from_filename(str(path))
    body = re.sub(r'\A\s*---\n.*?\n---\n', '', body, flags=re.S)
    body = re.sub(r'^#\| .*\n', '', body, flags=re.M)
    body = re.sub(r'\]\((?!https?:|#|mailto:)([^)]+\.ipynb)', r'](nbs/\1', body)
    page_of = book_modules()
    body = re.sub(rf'\]\({SITE}(\w+)\.html#[\w.]+\)',
                  lambda match: f'](nbs/{page_of[match[1]]}.ipynb)', body)
    body = re.sub(r'<!-- WARNING: THIS FILE WAS AUTOGENERATED.*?-->', '', body)
    body = body.replace(STORYTELLER, STORYTELLER_PICTURE)
    body = re.sub(r'\n{3,}', '\n\n', body).strip()
    note = ('<!-- Made from nbs/index.ipynb by `python nbs/_tools.py readme`: '
            'edit the notebook. -->')
    title = read(NBS/'index.ipynb').cells[0].source
    return f'{note}\n\n{title}\n\n{body}\n'


def readme(_):
    "Write README.md and its picture."
    (ROOT/'README.md').write_text(readme_text(), encoding='utf-8')
    MAP_FILE.write_text(picture_text(), encoding='utf-8')
    return []


# ------------------------------------------------------------------------------ the checks

def shows_something(source):
    "Does a cell print, or end in an expression that Jupyter would show?"
    tree = ast.parse(without_magics(source))
    calls = [node.value.func for node in tree.body
             if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    if any(getattr(call, 'id', '') == 'print' for call in calls):
        return True
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or isinstance(last.value, ast.Constant):
        return False
    called = getattr(getattr(last.value, 'func', None), 'attr', '')
    return called not in SILENT and not source.rstrip().endswith(';')


def export_faults(copy):
    "Modules of this tree that differ from what its pages export in a fresh copy."
    env = {**os.environ, 'PYTHONPATH': str(copy)}
    for module in (copy/'piny').glob('*.py'):
        module.unlink()
    subprocess.run([program('nbdev_export')], cwd=copy, check=True, env=env)
    fresh = {path.name: path.read_text() for path in (copy/'piny').glob('*.py')}
    present = {path.name: path.read_text() for path in (ROOT/'piny').glob('*.py')}
    return [f'piny/{name} is not what the pages export: run nbdev_export'
            for name in sorted(fresh | present) if fresh.get(name) != present.get(name)]


def clean_faults(copy):
    "Pages of this tree that differ from their cleaned copies."
    subprocess.run([program('nbdev_clean')], cwd=copy, check=True)
    return [f'{path.name} is not clean: run nbdev_clean' for path in pages()
            if path.read_text() != (copy/path.relative_to(ROOT)).read_text()]


def page_faults(path):
    "What a page shows that it should not, or does not show."
    notebook = read(path)
    title = re.sub(r'^(> |- ).*', '', notebook.cells[0].source.strip(), flags=re.M)
    faults = []
    if '\n\n' in title.strip():
        faults.append(f'{path.name}: the first cell holds more than title and summary; '
                      'the docs page would drop the rest')
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != 'code':
            continue
        where = f'{path.name}: cell {i}'
        if any(output.output_type == 'error' for output in cell.outputs):
            faults.append(f'{where} shows an error')
        pictures = [FIGURE_TYPES & output.get('data', {}).keys() for output in cell.outputs]
        alt = directives(cell.source).get('fig-alt')
        unread = alt is None or ': ' in alt or ' #' in alt  # by YAML, without quotes
        if any(pictures) and unread:
            faults.append(f'{where} shows a figure without a line #| fig-alt: … '
                          'in which no other colon stands, and no number sign')
        if shown_svg(cell):
            faults += [f'{where}: its diagram: {fault}'
                       for fault in svg_faults(shown_svg(cell))]
        if any(WIDGET in output.get('data', {}) for output in cell.outputs):
            faults.append(f'{where} has saved a widget that needs a kernel: run the page '
                          'with python nbs/_tools.py execute')
        silent = runs(cell) and not cell.outputs
        if silent and shows_something(cell.source):
            faults.append(f'{where} has no saved output: {cell.source.splitlines()[-1]}')
    return faults


def check(_):
    "Faults of pages, modules, README and code."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)/'copy'
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        faults = export_faults(copy) + clean_faults(copy)
    for path in pages():
        faults += page_faults(path)
    texts = {ROOT/'README.md': readme_text(), MAP_FILE: picture_text()}
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding='utf-8') != text:
            faults.append(f'{path.name} differs from nbs/index.ipynb: '
                          'run python nbs/_tools.py readme')
    faults += setup_faults()
    for note in code_notes():
        print(f'note {note}')
    return faults + code_faults()


def lint(_):
    "Run ruff and mypy as pyproject.toml sets them up; they print what they find."
    commands = ['ruff', 'check', 'nbs', 'piny'], ['mypy', 'piny']
    return [f'{command[0]} has found faults' for command in commands
            if subprocess.run([sys.executable, '-m', *command], cwd=ROOT).returncode]


COMMANDS = dict(execute=execute, readme=readme, site=site, look=look, check=check,
                lint=lint, rerun=rerun, package=package, setup_cell=setup_cell)


def main():
    "The command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', choices=COMMANDS)
    parser.add_argument('pages', nargs='*')
    args = parser.parse_args()
    faults = COMMANDS[args.command](args.pages)
    for fault in faults:
        print(f'FAULT {fault}')
    return 1 if faults else 0


if __name__ == '__main__':
    sys.exit(main())
