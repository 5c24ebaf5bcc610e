"""The built site in a headless Chromium: every page at two widths, light and dark.

A page must not be wider than its window, report an error to the console, ask another host
for anything, show a broken picture or one without a text, or have a fault that axe calls
serious or critical.
"""
import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VIEWS = [(1280, 'light'), (390, 'dark'), (1280, 'dark'), (390, 'light')]
MEASURE = '''() => ({
    tooWide: document.documentElement.scrollWidth - innerWidth,
    broken: [...document.images].filter(image => !image.naturalWidth).length,
    mute: [...document.querySelectorAll('main img')].filter(image => !image.alt).length,
})'''


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    "Serves a folder, and says nothing."

    def log_message(self, *args):
        "Nobody reads it."


class Page:
    "A page in the browser, and what it did that it should not."

    def __init__(self, context, base):
        self.page, self.base, self.faults = context.new_page(), base, []
        self.page.on('console', self.on_console)
        self.page.on('pageerror', lambda error: self.faults.append(f'error: {error}'))
        self.page.on('request', self.on_request)

    def on_console(self, message):
        "Errors count."
        if message.type == 'error':
            self.faults.append(f'console: {message.text}')

    def on_request(self, request):
        "Other hosts count."
        if not request.url.startswith((self.base, 'data:', 'blob:')):
            self.faults.append(f'asks for {request.url}')

    def look(self, name, axe):
        "Open a page; give its faults, those that `axe` finds too if it is given."
        self.faults = []
        self.page.goto(self.base + name)
        self.page.wait_for_timeout(100)  # what a script asks for when all is loaded
        found = self.page.evaluate(MEASURE)
        words = dict(tooWide='pixels too wide', broken='broken pictures',
                     mute='pictures without a text')
        self.faults += [f'{found[key]} {what}' for key, what in words.items()
                        if found[key] > 0]
        violations = axe.run(self.page).response['violations'] if axe else []
        for violation in violations:
            if violation['impact'] in ('serious', 'critical'):
                node = violation['nodes'][0]
                self.faults.append(f'{violation["id"]}, {len(violation["nodes"])} times: '
                                   f'{node["html"][:100]}')
        return self.faults


def look(views):
    "Faults of the built site, seen in a browser; two views, or `all`."
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright
    docs = ROOT/'_docs'
    if not docs.is_dir():
        return ['there is no site in _docs/: build it by `python nbs/_tools.py site`']
    names = sorted(path.relative_to(docs).as_posix() for path in docs.rglob('*.html')
                   if path.relative_to(docs).parts[0] != 'web')
    handler = functools.partial(SilentHandler, directory=docs)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, faults = f'http://127.0.0.1:{server.server_port}/', []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which('chromium'),
            args=['--no-sandbox', '--disable-gpu', '--disable-background-networking'])
        for n_view, (width, scheme) in enumerate(VIEWS if 'all' in views else VIEWS[:2]):
            axe = Axe() if n_view == 0 or 'all' in views else None
            context = browser.new_context(
                viewport=dict(width=width, height=900), color_scheme=scheme)
            page = Page(context, base)
            for n, name in enumerate(names):
                if n % 20 == 0:
                    print(f'{width} pixels, {scheme}: {n} of {len(names)} pages, '
                          f'{len(faults)} faults', file=sys.stderr, flush=True)
                faults += [f'{name} ({width}, {scheme}): {fault}'
                           for fault in page.look(name, axe)]
            context.close()
        browser.close()
    server.shutdown()
    return faults
