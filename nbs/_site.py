"""The docs site: built by smalldocs from the processed pages, then completed.

`python nbs/_tools.py site` builds it into `_docs/`. The book adds here what a plain build
leaves out: formulas without a foreign script, links to names of the library, the live
storyteller and views, the map and the links under a title, a search through prose.
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

from _diagrams import book_map, map_parts
from _publish import with_badges
from _rules import NBS, ROOT, book_modules, book_pages, functions, without_magics

SITE = 'https://piny-lm.github.io/piny/'
# what smalldocs says of every page, and what counts the rest
EXPECTED_NOTES = 'output-file is not read', 'thing(s) to look at'


def formulas_as_mathml(html):
    "A page whose formulas need no script from elsewhere."
    from latex2mathml.converter import convert

    def block(match):
        return convert(unescape(match[1]).strip(), display='block')

    def inline(match):
        return convert(unescape(match[1]).strip(), display='inline')

    html = re.sub(r'<(?:link|script)[^>]*katex[^>]*>(?:</script>)?', '', html)
    html = re.sub(r'<span class="math display">\s*\\\[(.*?)\\\]\s*</span>', block, html,
                  flags=re.S)
    return re.sub(r'<span class="math inline">\s*\\\((.*?)\\\)\s*</span>', inline, html,
                  flags=re.S)


def replaced_inside(html, outer, inner, new):
    "A page in which a pattern is replaced inside another one only."
    return re.sub(outer, lambda match: re.sub(inner, new, match[0]), html)


def plain_comments(html):
    "Comments of code without the links that nbdev writes into them."
    return replaced_inside(html, r'<span class="co">[^<]*</span>',
                           r'\[(`\w+`)\]\(http[^)]*\)', r'\1')


def symbols(source):
    "The names in code that a page can link to: functions, classes and methods."
    try:
        tree = ast.parse(without_magics(source))
    except SyntaxError:  # no Python
        return []
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return classes + [name for name, _ in functions(tree)]


def anchored(html, module):
    "Anchors for the names of exported cells, which are headed with their module's name."
    def with_anchors(match):
        code = unescape(re.sub(r'<[^>]*>', '', match['code']))
        anchors = ''.join(f'<a id="{name.lower()}"></a>' for name in symbols(code))
        caption = match['head'].replace('Exported source', f'piny.{module}')
        return anchors + caption + match['code']

    exported = r'(?P<head><details[^>]*>\s*<summary>Exported source</summary>)'
    return re.sub(exported + r'(?P<code>.*?</pre>)', with_anchors, html, flags=re.S)


def linked_inside(
    html,
    depth,  # folders between the page and the site's root
    modules,  # module to the name of its page
):
    "Links to names of the library lead to this site's own pages, wherever it stands."
    def local(match):
        page = modules.get(match[1])
        return f'href="{"../" * depth}{page}.html#{match[2]}"' if page else match[0]

    return re.sub(rf'href="{re.escape(SITE)}(\w+)\.html#([\w.]+)"', local, html)


def dead_links(folder):
    "Links to a name that its page does not show."
    faults = []
    for page in folder.rglob('*.html'):
        html = page.read_text(encoding='utf-8')
        links = set(re.findall(r'href="([\w./-]*\.html)#([\w.]+)"', html))
        for target, name in sorted(links):
            path = page.parent/target
            if not path.exists() or f'id="{name}"' not in path.read_text(encoding='utf-8'):
                faults.append(f'{page.relative_to(folder)}: {target} has no {name}')
    return faults


def smalldocs(command, *options):
    "Run smalldocs over the processed pages; its complaints."
    arguments = [sys.executable, '-m', 'smalldocs.cli', command, *options, '_proc']
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode < 0:
        return [f'smalldocs {command} was ended by signal {-done.returncode}']
    lines = (done.stdout + done.stderr).splitlines() if done.returncode else []
    return [f'smalldocs {command}: {line}' for line in lines
            if not any(note in line for note in EXPECTED_NOTES)]


STORYTELLER = '<div class="storyteller"></div>'  # in a page: here it stands
INSIDE = '<div class="inside" data-view="{}"></div>'  # likewise, a view of <piny-inside>
LIVE_HEAD = """<link rel="stylesheet" href="{0}/storyteller.css">
<link rel="stylesheet" href="{0}/inside.css">
<script src="{0}/storyteller.js" defer></script>
<script src="{0}/inside.js" defer></script>
"""


def write_live(folder):
    "Write the built-in weights' web folder, once for all pages; elements by their places."
    from piny.export import write_web
    from piny.pretrained import load_checkpoint
    write_web(*load_checkpoint('piny-mini'), folder)
    html = (folder/'index.html').read_text(encoding='utf-8')
    storyteller = re.search('<piny-storyteller.*</piny-storyteller>', html, re.S)
    elements = {STORYTELLER: storyteller[0]}
    html = (folder/'inside.html').read_text(encoding='utf-8')
    for element in re.findall('<piny-inside.*?</piny-inside>', html, re.S):
        view = re.search(r'view="(\w+)"', element)[1]
        elements[INSIDE.format(view)] = element
    return elements


def with_live(html, elements, depth):
    "A page with the storyteller, or a view, where it asks for it."
    places = [place for place in elements if place in html]
    if not places:
        return html
    html = html.replace('</head>', LIVE_HEAD.format('../' * depth + 'web') + '</head>', 1)
    for place in places:
        html = html.replace(place, elements[place])
    return html


def remove_web_fonts(folder):
    "Take out of the themes what they would load from another host: fonts."
    for path in folder.rglob('*.css'):
        text = path.read_text(encoding='utf-8')
        own = re.sub(r'@import url\(https?://[^)]*\);', '', text)
        if own != text:
            path.write_text(own, encoding='utf-8')


def with_map(
    html,
    page,  # its name, such as 08_rope
):
    "A page with the map of the whole under its title, its own part lit."
    parts = map_parts(page)
    if not parts:
        return html
    title = r'<header id="title-block-header".*?</header>'
    return re.sub(title, lambda match: match[0] + book_map(parts).svg(), html, count=1,
                  flags=re.S)


def prose_by_section(notebook):
    "The prose under each heading of a notebook, without code and marks."
    texts, heading = {'': []}, ''
    cells = [cell.source for cell in notebook.cells if cell.cell_type == 'markdown']
    for line in '\n'.join(cells).splitlines():
        if match := re.match(r'##+ (.*)', line):
            heading = re.sub(r'\W+', ' ', match[1]).strip()
            texts.setdefault(heading, [])
        elif not line.startswith((':::', '# ', '[Next')):
            texts[heading].append(re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', line))
    return {heading: re.sub(r'[*`$|#]+', '', ' '.join(lines)).strip()
            for heading, lines in texts.items()}


def searched_by_prose(path):
    "Make the search look through explanations, not through code; the glossary comes first."
    import nbformat
    entries = json.loads(path.read_text(encoding='utf-8'))
    prose = {}
    for page in book_pages():
        name = page.relative_to(NBS).with_suffix('').as_posix()
        prose[name] = prose_by_section(nbformat.read(page, as_version=4))
    for entry in entries:
        texts = prose.get(entry['href'].split('.html')[0], {})
        section = re.sub(r'\W+', ' ', entry['section']).strip()
        entry['text'] = texts.get(section, '')
    entries.sort(key=lambda entry: not entry['href'].startswith('glossary'))
    path.write_text(json.dumps(entries), encoding='utf-8')


SCROLL_BY_KEYS = """<script>
for (const box of document.querySelectorAll('pre, .cell-output-display, .sd-table')) {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
}
</script>
"""


def accessible(html):
    """A page whose icons are silent, since the link around them says what they are, and
    whose foldable boxes are buttons, and whose wide boxes scroll, by the keyboard, too."""
    html = html.replace('" role="img"></i>', '" aria-hidden="true"></i>')
    html = html.replace('</body>', SCROLL_BY_KEYS + '</body>')
    press = "if (['Enter', ' '].includes(event.key)) { event.preventDefault(); click() }"
    return html.replace(
        'data-bs-toggle="collapse" data-bs-target="#callout-',
        f'role="button" tabindex="0" onkeydown="{press}" '
        'data-bs-toggle="collapse" data-bs-target="#callout-')


def links_as_meant(html):
    "A page in which a link around a symbol of the library goes where its writer wanted."
    automatic = r'\[<a href="[^"]*">(<code>[^<]*</code>)</a>\]'
    return re.sub(automatic + r'\(([\w/.]+)\.ipynb(#[\w.-]+)?\)',
                  r'<a href="\2.html\3">\1</a>', html)


# Names of functions that are also the words for a split, a field or a way of packing. Where
# the function is meant, its page is linked by hand.
WORDS = ('story', 'stories', 'train', 'stream', 'main', 'tell')


def words_unlinked(html):
    "A page in which nbdev makes no link of a word that is a function's name as well."
    word = rf'<code>(?:{"|".join(WORDS)})</code>'
    return re.sub(rf'<a href="{re.escape(SITE)}[^"]*">({word})</a>', r'\1', html)


def options_whole(html):
    "A page in which no line ends inside the dashes or the name of an option."
    return replaced_inside(html, r'<code>[^<]*</code>', r'--[a-z][\w-]*',
                           r'<span class="option">\g<0></span>')


def answers_folded(html):
    "A page whose text after a solution, up to the next exercise, waits for a click."
    answer = (r'(<summary>Solution</summary>(?:(?!</details>).)*</details></div>\s*)'
              r'((?:<p>(?!<strong>)(?:(?!</p>).)*</p>\s*)+)(?=<p><strong>|<h2|</section>)')
    fold = r'\1<details class="code-fold"><summary>What it shows</summary>\2</details>'
    return re.sub(answer, fold, html, flags=re.S)


def solutions_folded(html):
    "A page whose solutions hide what they print, too, until they are opened."
    start = html.find('<summary>Solution</summary>')
    while start >= 0:
        end = html.index('</details>', start)
        html = html[:end] + html[end + len('</details>'):]
        depth = 1  # the cell is open
        for tag in re.finditer(r'<(/?)div\b', html[end:]):
            depth += -1 if tag[1] else 1
            if depth == 0:
                end += tag.start()
                break
        html = f'{html[:end]}</details>{html[end:]}'
        start = html.find('<summary>Solution</summary>', end)
    return html


FIGURE_COLOURS = {  # of `matplotlibrc`, as `styles.css` names them for light and dark
    '#ffffff': 'var(--piny-paper)', '#000000': 'currentColor', '#262626': 'currentColor',
    '#595959': 'var(--piny-quiet)', '#666666': 'var(--piny-quiet)',
    '#808080': 'var(--piny-quiet)', '#d3d3d3': 'var(--piny-line)',
    '#e0e0e0': 'var(--piny-line)', '#0072b2': 'var(--piny-blue)',
    '#d55e00': 'var(--piny-orange)', '#009e73': 'var(--piny-green)',
    '#cc79a7': 'var(--piny-pink)', '#e69f00': 'var(--piny-yellow)',
    '#56b4e9': 'var(--piny-sky)',
}


def figures_as_the_page(html):
    """A page whose figures have its colours, light or dark, and say what one sees.
    One with other colours, such as a map of shades, stays; the style sheet turns it over
    for the dark."""
    n_figures = 0

    def as_the_page(match):
        nonlocal n_figures
        n_figures += 1
        figure = re.sub(r'<g id="[^"]*">', '<g>', match['drawing'])
        figure = re.sub(r'(id="|href="#|url\(#)', rf'\g<1>figure-{n_figures}-', figure)
        colours = set(re.findall(r'#[0-9a-f]{6}\b', figure))
        kind = 'lines' if colours <= FIGURE_COLOURS.keys() else 'shades'
        if kind == 'lines':
            for colour, name in FIGURE_COLOURS.items():
                figure = figure.replace(colour, name)
        return (f'<svg role="img" class="figure-{kind}" aria-label="{match["alt"]}"'
                f'{figure}</svg>')

    drawing = r'<svg alt="(?P<alt>[^"]*)"(?P<drawing> xmlns:xlink=.*?)</svg>'
    return re.sub(drawing, as_the_page, html, flags=re.S)


def command_lines_folded(html):
    "A page whose section on its command line shows prose first, its code at a click."
    section = r'(<h2[^>]*>(?:On|From) the command line</h2>)(.*?)(?=<h2|</main>)'
    return re.sub(section, lambda match: match[1] + match[2].replace(
        '<details open="" class="code-fold">', '<details class="code-fold">'),
        html, flags=re.S)


def site(_):
    "Faults of the docs site; builds it into _docs/."
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)
    shutil.rmtree('_proc', ignore_errors=True)
    proc_nbs(force=True)
    faults = smalldocs('render', '--strict', '--quiet') + smalldocs('check')
    if not Path('_proc/_site').is_dir():
        return faults or ['smalldocs has made no site']
    shutil.rmtree('_docs', ignore_errors=True)
    shutil.move('_proc/_site', '_docs')
    modules = book_modules()
    module_of = {page: module for module, page in modules.items()}
    paths = list(Path('_docs').rglob('*.html'))
    elements = write_live(Path('_docs/web'))
    remove_web_fonts(Path('_docs'))
    for path in paths:
        html = path.read_text(encoding='utf-8')
        html = links_as_meant(formulas_as_mathml(plain_comments(html)))
        html = answers_folded(solutions_folded(options_whole(words_unlinked(html))))
        html = figures_as_the_page(command_lines_folded(html))
        html = anchored(html, module_of.get(path.stem, ''))
        html = linked_inside(html, len(path.parts) - 2, modules)
        html = with_live(html, elements, len(path.parts) - 2)
        html = accessible(with_map(html, path.stem))
        page = path.relative_to('_docs').with_suffix('')
        if (NBS/page.with_suffix('.ipynb')).exists():
            html = with_badges(html, page.as_posix())
        if '<svg alt=' in html:
            faults.append(f'{path}: a figure has not got the colours of the page')
        if 'class="math' in html:
            faults.append(f'{path}: a formula is left untranslated')
        if re.search(r'\]\([\w/]+\.ipynb', html):
            faults.append(f'{path}: a link is left as text; a symbol needs none')
        path.write_text(html, encoding='utf-8')
    searched_by_prose(Path('_docs/search.json'))
    return faults + dead_links(Path('_docs'))
