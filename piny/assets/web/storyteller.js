// <piny-storyteller>: a prompt, settings, a story that streams, the likeliest next tokens.
//
// Its own content, a finished story, stays until the reader asks for another; only then is
// the model loaded, by worker.js. A page needs `<script src="storyteller.js" defer>`.

(() => {
  const base = document.currentScript.src;  // the other files stand beside this one
  const FIELDS = [  // name, label, default, least, most, step
    ['temperature', 'Temperature', 1, 0, 2, 0.05],
    ['top_k', 'Top-k (0: all)', 0, 0, 4096, 1],
    ['top_p', 'Top-p', 1, 0.05, 1, 0.05],
    ['min_p', 'Min-p', 0.2, 0, 1, 0.01],
    ['repetition_penalty', 'Repetition penalty', 1.1, 1, 2, 0.05],
    ['max_new_tokens', 'Tokens (0: all)', 0, 0, 4096, 1],
    ['seed', 'Seed', 7, 0, 2 ** 32 - 1, 1],
  ];
  const ENDINGS = {
    eos: 'It ended by itself',
    max_new_tokens: 'It is as long as asked for',
    context: 'The context is full; Go on lets the model see the newer half only',
    stop: 'Stopped',
  };
  const AS_FILE = 'This page was opened as a file, and the browser lets no such page ' +
    'load a model. Serve its folder, say with python -m http.server, and open that ' +
    'address.';
  const NO_WORKER = 'The worker that tells could not be started: this needs a browser of ' +
    '2023 or newer, and all files of the folder.';
  let count = 0;  // of storytellers, for ids of their own

  const fieldHTML = id => ([name, label, value, min, max, step]) =>
    `<label for="${id}-${name}">${label}<input type="number" id="${id}-${name}"
      name="${name}" value="${value}" min="${min}" max="${max}" step="${step}"></label>`;

  const elementHTML = id => `
    <form class="pt-form">
      <label for="${id}-prompt">How does the story begin?</label>
      <textarea id="${id}-prompt" name="prompt" rows="2">Once upon a time</textarea>
      <fieldset class="pt-settings"><legend>Settings</legend>
        ${FIELDS.map(fieldHTML(id)).join('')}
      </fieldset>
      <div class="pt-buttons">
        <button type="submit">Tell</button>
        <button type="button" data-action="stop">Stop</button>
        <button type="button" data-action="goOn">Go on</button>
        <button type="button" data-action="tryAgain">Try again</button>
        <button type="button" data-action="choose">Choose</button>
      </div>
      <p class="pt-status" role="status"></p>
    </form>
    <div class="pt-columns">
      <section class="pt-story" aria-label="Story" tabindex="0"></section>
      <section class="pt-next" aria-labelledby="${id}-next">
        <h3 id="${id}-next">What may come next</h3>
        <p class="pt-note">Pale: before the cuts (top-k, top-p, min-p). Strong: what they
          leave. Press a token to take it.</p>
        <ol></ol>
      </section>
    </div>`;

  const rowHTML = '<button type="button"><span class="pt-token"></span>' +
    '<span class="pt-bar"><i></i><b></b></span><span class="pt-share"></span></button>';

  const visible = text => text.replaceAll(' ', '␣').replaceAll('\n', '↵') || '…';
  const percent = share => `${(100 * share).toFixed(1)}%`;
  const shareText = share => share < 0.0005 ? '<0.1%' : percent(share);

  /** What <piny-storyteller> and <piny-inside> share: a worker, and a line of status. */
  class PinyElement extends HTMLElement {
    say(text) {
      if (this.status.textContent !== text) this.status.textContent = text;
    }

    /** What will be loaded, and that it stays here. */
    sayWhatLoads(button) {
      const size = this.getAttribute('megabytes');
      const model = size ? `the model, ${size} MB` : 'the model';
      this.say(`${button} loads ${model}; nothing leaves your machine.`);
    }

    showLoading({size, total}) {
      const of = total ? ` of ${(total / 1e6).toFixed(1)}` : '';
      this.say(`Loading the model: ${(size / 1e6).toFixed(1)}${of} MB …`);
    }

    startWorker() {
      if (this.worker) return true;
      const refusal = location.protocol === 'file:' ? AS_FILE : NO_WORKER;
      try {
        this.worker = new Worker(new URL('worker.js', base), {type: 'module'});
      } catch {
        this.say(refusal);
        return false;
      }
      this.worker.onmessage = ({data}) => this.answers[data.type](data);
      this.worker.onerror = event => {
        event.preventDefault();
        this.endWorker();
        this.say(refusal);
      };
      return true;
    }

    endWorker() {
      this.worker?.terminate();
      this.worker = null;
    }

    disconnectedCallback() {
      this.endWorker();
    }
  }

  window.PinyElement = PinyElement;  // inside.js builds on it

  class Storyteller extends PinyElement {
    connectedCallback() {
      if (this.form) return;  // moved about in its page
      const finished = this.textContent.trim();
      this.innerHTML = elementHTML(`piny-${count++}`);
      this.form = this.querySelector('form');
      this.status = this.querySelector('.pt-status');
      this.story = this.querySelector('.pt-story');
      this.story.textContent = finished;
      this.makeRows();
      this.form.addEventListener('submit', event => {
        event.preventDefault();
        this.tell();
      });
      for (const button of this.querySelectorAll('[data-action]')) {
        button.addEventListener('click', () => this[button.dataset.action]());
      }
      this.form.addEventListener('input', event => {
        if (event.target.type === 'number') this.settingsChanged();
      });
      this.sayWhatLoads('Tell');
    }

    /** The rows of tokens stay, and only their content changes: so none loses the focus. */
    makeRows() {
      this.rows = Array.from({length: 12}, () => {
        const row = document.createElement('li');
        row.innerHTML = rowHTML;
        row.hidden = true;
        row.firstChild.addEventListener('click', () => this.take(row.candidate));
        return row;
      });
      this.querySelector('ol').append(...this.rows);
    }

    // -------------------------------------------------------------- what the reader does

    /** All settings; null, and a sentence, where one is out of its range. */
    settings() {
      const settings = {};
      for (const [name, label, , min, max, step] of FIELDS) {
        const text = this.form.elements[name].value, value = Number(text);
        const whole = step < 1 || Number.isInteger(value);
        if (text === '' || !(value >= min && value <= max && whole)) {
          const expected = `a ${step < 1 ? '' : 'whole '}number from ${min} to ${max}`;
          this.say(`${label} is ${text || 'empty'}; expected ${expected}.`);
          return null;
        }
        settings[name] = value;
      }
      for (const name of ['top_k', 'min_p', 'max_new_tokens']) settings[name] ||= null;
      if (settings.top_p === 1) settings.top_p = null;  // off, as those at 0
      return settings;
    }

    /** Ask the worker for something that the settings shape. */
    ask(type, fields = {}) {
      const settings = this.settings();
      if (!settings || !this.startWorker()) return false;
      this.worker.postMessage({type, settings, ...fields});
      return true;
    }

    tell() {
      const prompt = this.form.elements.prompt.value;
      if (this.ask('tell', {prompt})) this.telling = true;
    }

    choose() {
      const prompt = this.form.elements.prompt.value;
      if (this.ask('choose', {prompt})) this.telling = false;
    }

    stop() {
      if (this.telling) this.worker.postMessage({type: 'stop'});
      else this.say('No story is being told.');
      this.telling = false;
    }

    goOn() {
      if (this.telling) return;
      if (!this.begun) this.tell();
      else if (this.ended) this.say('This story has ended; press Tell or Try again.');
      else if (this.ask('go_on')) this.telling = true;
    }

    tryAgain() {
      this.form.elements.seed.value = Number(this.form.elements.seed.value) + 1;
      this.tell();
    }

    take({id}) {
      this.telling = false;
      this.worker.postMessage({type: 'take', id});
    }

    settingsChanged() {
      if (!this.settings()) return;
      this.say('');
      if (this.begun && !this.telling) this.ask('settings');
    }

    // ------------------------------------------------------------ what the worker answers

    endWorker() {
      super.endWorker();
      this.begun = this.telling = false;
      for (const row of this.rows) row.hidden = true;
    }

    answers = {
      loading: message => this.showLoading(message),
      begin: () => {
        this.begun = true;
        this.dataset.begun = '';  // from now on tokens have their place beside the story
        this.ended = false;
        this.story.textContent = '';
        this.say(this.telling ? '' : 'Press a token to take it; Go on tells from there.');
      },
      text: ({text}) => this.story.append(text),
      candidates: ({candidates}) => {
        if (!this.candidates) requestAnimationFrame(() => this.showCandidates());
        this.candidates = candidates;
      },
      speed: ({n, seconds}) => {
        this.speed = `${n} tokens, ${Math.round(n / seconds)} a second`;
        if (this.telling) this.say(`Telling … ${this.speed}`);
      },
      end: ({reason}) => {
        this.telling = false;
        this.ended = reason === 'eos';
        this.say(`${ENDINGS[reason]}${this.speed ? `: ${this.speed}` : ''}.`);
        this.speed = null;
      },
      error: ({message}) => {
        this.telling = false;
        this.say(message);
      },
    };

    /** Show the newest candidates; once a frame, however fast tokens come. */
    showCandidates() {
      this.rows.forEach((row, place) => {
        const candidate = this.candidates[place];
        row.hidden = !candidate;
        if (candidate) this.showCandidate(row, candidate);
      });
      this.candidates = null;
    }

    showCandidate(row, candidate) {
      const [token, bar, share] = row.firstChild.children, {text, prob, kept} = candidate;
      const after = candidate.cutBy ? `cut by ${candidate.cutBy}` : shareText(kept);
      row.candidate = candidate;
      token.textContent = visible(text);
      bar.firstChild.style.width = percent(prob);
      bar.lastChild.style.width = percent(kept);
      share.textContent = `${shareText(prob)} → ${after}`;
      row.firstChild.setAttribute('aria-label', `Take “${text}”, ${share.textContent}`);
    }
  }

  customElements.define('piny-storyteller', Storyteller);
})();
