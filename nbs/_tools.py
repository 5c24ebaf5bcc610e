"""What the project does to its own pages; each command ends with exit code 1 when it finds a fault.

    python nbs/_tools.py execute [PAGE …]   run pages in a fresh kernel and save their outputs
    python nbs/_tools.py readme             make README.md from index.ipynb
    python nbs/_tools.py site               build the docs site into _docs/ (no Quarto needed)
    python nbs/_tools.py check              pages exported, clean, executed; README fresh
    python nbs/_tools.py rerun PAGE         run a page again and compare its text outputs
"""
import argparse, ast, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

NBS = Path(__file__).resolve().parent
ROOT = NBS.parent
NOT_RUN = {'slow', 'browser', 'cuda', 'notest'}
SILENT = {'assert_close', 'chdir', 'cleanup', 'close', 'zero_grad'}  # calls that return None, so that a cell may end in them


def pages(names=()):
    "Every page of the book, or the named ones."
    if names: return [Path(n).resolve() for n in names]
    return sorted(p for p in NBS.rglob('*.ipynb') if not any(part[0] in '._' for part in p.relative_to(NBS).parts))


def refused(function, *args, error=ValueError, **kwargs):
    "The sentence by which a call is refused; an AssertionError where it is not."
    try:
        function(*args, **kwargs)
    except error as found:
        return str(found)
    raise AssertionError(f'{function.__name__} took {args} {kwargs}')


def read(path):
    "A notebook."
    import nbformat
    return nbformat.read(path, as_version=4)


def directives(cell):
    "The `#|` directives at the head of a cell, name to value."
    found = {}
    for line in cell.source.splitlines():
        if not line.strip().startswith('#|'): break
        name, _, value = line.strip()[2:].strip().partition(' ')
        found[name.rstrip(':')] = value.strip()
    return found


def runs(cell):
    "Is this a code cell that a plain run executes?"
    if cell.cell_type != 'code': return False
    d = directives(cell)
    return not (NOT_RUN & d.keys() or d.get('eval') == 'false')


def skipped(nb):
    "Does the page's front matter say `skip_exec: true`?"
    head = nb.cells[0].source if nb.cells else ''
    return bool(re.search(r'^(- )?skip_exec:\s*true', head, re.M))


def run(nb, folder):
    "Run the cells that a plain run executes in a fresh kernel; the others keep the outputs that they have."
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    client = NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(folder)}})
    with client.setup_kernel():
        for i, cell in enumerate(nb.cells):
            if not runs(cell): continue
            cell.outputs = []
            client.execute_cell(cell, i)
    nb.metadata.pop('language_info', None)
    nb.metadata.pop('widgets', None)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = merge_streams([o for o in map(without_widget, cell.outputs) if o])
    return nb


WIDGET = 'application/vnd.jupyter.widget-view+json'  # names a model in a kernel that is gone by the time a page is read


def without_widget(output):
    "An output without its live widget: the picture or text beside it stays; a bar, which has only its repr, goes."
    data = output.get('data', {})
    if WIDGET in data:
        del data[WIDGET]
        if set(data) <= {'text/plain'}: return None
        data.pop('text/plain', None)
    return output


def merge_streams(outputs):
    "Joins pieces of one stream and plays carriage returns, so that a progress bar leaves only its last state."
    merged = []
    for o in outputs:
        if merged and o.output_type == 'stream' == merged[-1].output_type and o.name == merged[-1].name:
            merged[-1].text += o.text
        else: merged.append(o)
    for o in merged:
        if o.output_type == 'stream':
            lines = [line.rstrip('\r').rsplit('\r', 1)[-1] for line in o.text.split('\n')]
            o.text = '\n'.join(lines)
    return [o for o in merged if o.output_type != 'stream' or o.text.strip()]


def execute(names):
    for path in pages(names):
        nb = read(path)
        if skipped(nb) and not names: continue
        print(f'{path.name} …', end=' ', flush=True)
        import nbformat
        nbformat.write(run(nb, path.parent), path)
        subprocess.run(['nbdev_clean', '--fname', str(path)], check=True, cwd=ROOT)
        print('saved')
    return []


def text_outputs(nb):
    return [[o.get('text') or o.get('data', {}).get('text/plain') for o in c.outputs] if runs(c) else [] for c in nb.cells if c.cell_type == 'code']


def rerun(names):
    "Faults: cells whose text output is not what the page shows."
    faults = []
    for path in pages(names):
        old, new = read(path), run(read(path), path.parent)
        clean = lambda x: re.sub(r' at 0x[0-9a-f]+', '', str(x))
        for i, (a, b) in enumerate(zip(text_outputs(old), text_outputs(new))):
            if clean(a) != clean(b): faults.append(f'{path.name}: code cell {i} shows {clean(a)[:200]} but a new run gives {clean(b)[:200]}')
    return faults


def readme_text():
    "index.ipynb as Markdown, through the same processing as its docs page."
    from execnb.nbio import read_nb, write_nb
    from nbconvert import MarkdownExporter
    from nbdev.processors import FilterDefaults
    nb = read_nb(NBS/'index.ipynb')
    FilterDefaults()(nb)
    with tempfile.TemporaryDirectory() as folder:
        write_nb(nb, Path(folder)/'index.ipynb')
        body, _ = MarkdownExporter().from_filename(str(Path(folder)/'index.ipynb'))
    body = re.sub(r'\A\s*---\n.*?\n---\n', '', body, flags=re.S)
    body = re.sub(r'^#\| .*\n', '', body, flags=re.M)
    body = re.sub(r'\]\((?!https?:|#|mailto:)([^)]+\.ipynb)', r'](nbs/\1', body)
    body = re.sub(r'<!-- WARNING: THIS FILE WAS AUTOGENERATED.*?-->', '', body)
    note = '<!-- Made from nbs/index.ipynb by `python nbs/_tools.py readme`: edit the notebook. -->\n\n'
    return note + read(NBS/'index.ipynb').cells[0].source + '\n\n' + re.sub(r'\n{3,}', '\n\n', body).strip() + '\n'


def readme(_):
    (ROOT/'README.md').write_text(readme_text(), encoding='utf-8')
    return []


def finish(html):
    "Formulas as MathML, so that a page needs no script from elsewhere to show them; in comments of code, names without links."
    from html import unescape
    from latex2mathml.converter import convert
    def formula(m, display): return convert(unescape(m[1]).strip(), display='block' if display else 'inline')
    html = re.sub(r'<span class="co">[^<]*</span>', lambda m: re.sub(r'\[(`\w+`)\]\(http[^)]*\)', r'\1', m[0]), html)
    html = re.sub(r'<(?:link|script)[^>]*katex[^>]*>(?:</script>)?', '', html)
    html = re.sub(r'<span class="math display">\s*\\\[(.*?)\\\]\s*</span>', lambda m: formula(m, True), html, flags=re.S)
    return re.sub(r'<span class="math inline">\s*\\\((.*?)\\\)\s*</span>', lambda m: formula(m, False), html, flags=re.S)


def site(_):
    "Faults of the docs site; builds it into _docs/."
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)
    shutil.rmtree('_proc', ignore_errors=True)
    proc_nbs(force=True)
    faults = []
    for command in (['render', '--strict', '--quiet'], ['check']):
        done = subprocess.run([sys.executable, '-m', 'smalldocs.cli', *command, '_proc'], capture_output=True, text=True)
        said = [line for line in (done.stdout + done.stderr).splitlines() if 'output-file is not read' not in line and 'thing(s) to look at' not in line]
        if done.returncode: faults += [f'smalldocs {command[0]}: {line}' for line in said]
    shutil.rmtree('_docs', ignore_errors=True)
    shutil.move('_proc/_site', '_docs')
    for page in Path('_docs').rglob('*.html'):
        html = finish(page.read_text(encoding='utf-8'))
        if re.search(r'class="math', html): faults.append(f'{page}: a formula is left untranslated')
        page.write_text(html, encoding='utf-8')
    return faults


def shows_something(source):
    "Does a cell print, or end in an expression that Jupyter would show?"
    tree = ast.parse(re.sub(r'^\s*[%!].*$', 'pass', source, flags=re.M))
    if not tree.body: return False
    if any(isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and getattr(n.value.func, 'id', '') == 'print' for n in tree.body): return True
    last = tree.body[-1]
    if isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and getattr(last.value.func, 'attr', '') in SILENT: return False
    return isinstance(last, ast.Expr) and not source.rstrip().endswith(';') and not isinstance(last.value, ast.Constant)


def check(_):
    "Faults: pages not exported, not clean, not executed, or README.md not made from the index."
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)/'copy'
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns('.git', '_docs', '_proc', 'runs', '*.egg-info', '__pycache__', '.venv'))
        (copy/'piny').rename(Path(folder)/'old'); (copy/'piny').mkdir()
        env = {**os.environ, 'PYTHONPATH': str(copy)}
        subprocess.run(['nbdev_export'], cwd=copy, check=True, env=env)
        for new in sorted((copy/'piny').glob('*.py')):
            old = ROOT/'piny'/new.name
            if not old.exists() or old.read_text() != new.read_text(): faults.append(f'piny/{new.name} is not what the pages export: run nbdev_export')
        for old in sorted((ROOT/'piny').glob('*.py')):
            if not (copy/'piny'/old.name).exists(): faults.append(f'piny/{old.name} comes from no page')
        subprocess.run(['nbdev_clean'], cwd=copy, check=True, env=env)
        for path in pages():
            if path.read_text() != (copy/path.relative_to(ROOT)).read_text(): faults.append(f'{path.name} is not clean: run nbdev_clean')
    for path in pages():
        nb = read(path)
        if '\n\n' in re.sub(r'^(> |- ).*', '', nb.cells[0].source.strip(), flags=re.M).strip():
            faults.append(f'{path.name}: the first cell holds more than title and summary; the docs page would drop the rest')
        for i, cell in enumerate(nb.cells):
            if cell.cell_type != 'code': continue
            if any(o.output_type == 'error' for o in cell.outputs): faults.append(f'{path.name}: cell {i} shows an error')
            if any(WIDGET in o.get('data', {}) for o in cell.outputs): faults.append(f'{path.name}: cell {i} has saved a widget that needs a kernel: run the page with python nbs/_tools.py execute')
            if runs(cell) and not skipped(nb) and not cell.outputs and shows_something(cell.source):
                faults.append(f'{path.name}: cell {i} has no saved output: {cell.source.splitlines()[-1]}')
    if (ROOT/'README.md').read_text(encoding='utf-8') != readme_text():
        faults.append('README.md differs from nbs/index.ipynb: run python nbs/_tools.py readme')
    return faults


if __name__ == '__main__':
    commands = dict(execute=execute, readme=readme, site=site, check=check, rerun=rerun)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', choices=commands)
    parser.add_argument('pages', nargs='*')
    args = parser.parse_args()
    faults = commands[args.command](args.pages)
    for fault in faults: print(f'FAULT {fault}')
    sys.exit(1 if faults else 0)
