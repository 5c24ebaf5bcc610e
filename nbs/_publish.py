"""How Piny reaches its readers: as packages, and as pages in notebooks of the cloud.

`python nbs/_tools.py package` builds and tries the packages; `… setup_cell` gives each
page the hidden cell that fetches the project in a cloud notebook; `… site` puts links to
such notebooks under each title. Quarto alone shows pages without these links.
"""
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from _rules import NBS, ROOT, book_pages, program

REPOSITORY = 'github.com/piny-lm/piny'
LARGEST = 20_000_000  # bytes that a package has at most

# ---------------------------------------------------------------------------- the packages

ONLY_IN_SDIST = {'LICENSE', 'README.md', 'pyproject.toml', 'settings.ini', 'setup.py'}


WHERE = '-c', 'import piny; print(piny.__version__, piny.__file__)'
TRIED = [
    WHERE,
    ('-m', 'piny'),
    ('-c', 'from piny.storybook import story; print(story(0))'),
    ('-m', 'piny.sampling', 'One day', '--max_new_tokens', '20'),
]


def package_files():
    "The files that belong into a package, as git knows them, from the project's root."
    listed = subprocess.run(['git', 'ls-files', 'piny'], cwd=ROOT, check=True,
                            capture_output=True, text=True)
    return set(listed.stdout.splitlines())


def build(folder):
    "Build both packages from a clean copy; the wheel is made from the source package."
    copy = folder/'copy'
    for name in sorted(package_files() | ONLY_IN_SDIST | {'MANIFEST.in'}):
        (copy/name).parent.mkdir(parents=True, exist_ok=True)
        (copy/name).write_bytes((ROOT/name).read_bytes())
    done = subprocess.run([sys.executable, '-m', 'build', '--outdir', folder, copy],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or 'WARNING' in done.stdout:
        raise SystemExit(f'The packages cannot be built:\n{done.stdout}')
    (source,), (wheel,) = folder.glob('*.tar.gz'), folder.glob('*.whl')
    return source, wheel


def content_faults(path, present, expected):
    "What a package lacks, or holds and should not, and whether it is too large."
    faults = [f'{path.name} lacks {name}' for name in sorted(expected - present)]
    others = {name for name in present if name.startswith('piny/')} - expected
    faults += [f'{path.name} holds {name}' for name in sorted(others)]
    size = path.stat().st_size
    print(f'{path.name}: {len(present)} files, {size:,} bytes')
    if size > LARGEST:
        faults.append(f'{path.name} has {size:,} bytes, at most {LARGEST:,}')
    return faults


def installed_faults(wheel, folder):
    "Install a wheel into a folder, and use it where the source tree is out of reach."
    site, outside = folder/'site', folder/'outside'
    outside.mkdir()
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index',
                    '--no-warn-conflicts', '--target', site, wheel], check=True)
    env = {**os.environ, 'PYTHONPATH': str(site), 'PINY_CACHE': str(folder/'cache')}
    faults = []
    for command in TRIED:
        done = subprocess.run([sys.executable, *command], cwd=outside, env=env,
                              capture_output=True, text=True)
        print(f'$ python {" ".join(command)}\n{done.stdout}')
        if done.returncode or not done.stdout.strip():
            faults.append(f'installed, python {" ".join(command)} fails: {done.stderr}')
        if command is WHERE and str(site) not in done.stdout:
            faults.append(f'another piny was tried, and not the one in {site}')
    return faults


def package(_):
    "Faults of the packages: built, listed, weighed, installed and used outside this tree."
    files = package_files()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        source, wheel = build(folder)
        with tarfile.open(source) as archive:
            members = [member.name for member in archive if member.isfile()]
        in_source = {member.partition('/')[2] for member in members}
        in_wheel = set(zipfile.ZipFile(wheel).namelist())
        return [*content_faults(source, in_source, files | ONLY_IN_SDIST),
                *content_faults(wheel, in_wheel, files),
                *installed_faults(wheel, folder)]


# ------------------------------------------------------------------- notebooks of the cloud

CLOUDS = {
    'Colab': 'https://colab.research.google.com/github/piny-lm/piny/blob/main/nbs/',
    'Kaggle': f'https://kaggle.com/kernels/welcome?src=https://{REPOSITORY}/blob/main/nbs/',
}
TITLE_ENDS = re.compile(r'(<header id="title-block-header".*?)(</header>)', re.S)
SETUP_ID = 'in-the-cloud'  # of the cell
SETUP = '''#| hide
# In a notebook of Colab or Kaggle: fetch what this page needs. Elsewhere: do nothing.
import os

if {'COLAB_RELEASE_TAG', 'KAGGLE_KERNEL_RUN_TYPE'} & os.environ.keys():
    !test -d ~/piny || git clone -q --depth 1 https://REPOSITORY ~/piny
    %pip install -q ~/piny[tuning,export]
    %cd ~/piny/FOLDER'''


def with_badges(html, page):
    "A page of the site with links, under its title, that open it in a cloud notebook."
    links = [f'<a href="{address}{page}.ipynb">Open in {cloud}</a>'
             for cloud, address in CLOUDS.items()]
    badges = f'<p class="open-in">{" ".join(links)}</p>'
    return TITLE_ENDS.sub(lambda match: match[1] + badges + match[2], html, count=1)


def setup_source(path):
    "The setup cell of a page; only the folder that it leads to differs."
    folder = path.parent.relative_to(ROOT).as_posix()
    return SETUP.replace('REPOSITORY', REPOSITORY).replace('FOLDER', folder)


def setup_faults():
    "Pages whose second cell is not the setup cell."
    import nbformat
    faults = []
    for path in book_pages():
        cells = nbformat.read(path, as_version=4).cells
        if len(cells) < 2 or cells[1].source != setup_source(path):
            faults.append(f'{path.relative_to(NBS)}: the second cell is not the one that '
                          'fetches the project: run python nbs/_tools.py setup_cell')
    return faults


def setup_cell(_):
    "Give each page its setup cell, as the second; pages need not be run again."
    import nbformat
    for path in book_pages():
        notebook = nbformat.read(path, as_version=4)
        cells = [cell for cell in notebook.cells if cell.get('id') != SETUP_ID]
        cell = nbformat.v4.new_code_cell(setup_source(path), id=SETUP_ID)
        notebook.cells = [cells[0], cell, *cells[1:]]
        nbformat.write(notebook, path)
    subprocess.run([program('nbdev_clean')], cwd=ROOT, check=True)
    return setup_faults()
