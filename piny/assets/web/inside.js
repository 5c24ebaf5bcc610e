// <piny-inside view="attention | surprise | layers">: what a sentence of the reader's own
// passes through in the model.
//
// Its own content, a finished view, stays until the reader asks for another; only then is
// the model loaded, by worker.js. storyteller.js must stand before this script.

(() => {
  const SENTENCE = 'Lily lost her ball. She was sad.';
  const MOST_BITS = 10;  // of the strongest colour
  const KEYS = {  // rows and columns to go
    ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
  };
  let count = 0;  // of elements, for ids of their own

  const formHTML = id => `
    <form class="pt-form">
      <label for="${id}-text">A sentence of your own</label>
      <input type="text" id="${id}-text" name="text" value="${SENTENCE}">
      <div class="pt-buttons pi-controls"><button type="submit">Look inside</button></div>
      <p class="pt-status" role="status"></p>
    </form>
    <div class="pi-view"></div>`;

  /** An element with attributes and children; a text among them stays text. */
  function make(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  const percent = prob => `${(100 * prob).toFixed(1)}%`;
  const size = x => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length);
  const strength = value => `--strength: ${Math.min(1, Math.max(0, value)).toFixed(3)}`;

  class Inside extends window.PinyElement {
    connectedCallback() {
      if (this.form) return;  // moved about in its page
      const finished = [...this.childNodes], id = `piny-inside-${count++}`;
      this.innerHTML = formHTML(id);
      this.form = this.querySelector('form');
      this.status = this.querySelector('.pt-status');
      this.view = this.querySelector('.pi-view');
      this.view.append(...finished);
      this.form.addEventListener('submit', event => {
        event.preventDefault();
        this.look();
      });
      this.sayWhatLoads('Look inside');
    }

    look() {
      if (!this.startWorker()) return;
      this.say('Looking …');
      this.worker.postMessage({type: 'inside', text: this.form.elements.text.value});
    }

    answers = {
      loading: message => this.showLoading(message),
      error: ({message}) => this.say(message),
      inside: ({tokens, sizes}) => {
        Object.assign(this, {tokens, sizes, at: null, token: tokens.length - 1});
        this.say('');
        this.draw();
      },
    };

    draw() {
      const views = {attention: 'showAttention', surprise: 'showSurprise'};
      this[views[this.getAttribute('view')] ?? 'showLayers']();
    }

    // --------------------------------------------------------- attention (09_attention)

    /** A choice among n things that are counted from zero. */
    choice(name, n) {
      const id = `${this.form.elements.text.id}-${name}`;
      const options = Array.from({length: n}, (_, i) => make('option', {value: i}, `${i}`));
      const select = make('select', {id, name}, ...options);
      select.value = Math.min(Number(this.getAttribute(name)), n - 1);
      select.addEventListener('change', () => this.showAttention());
      return [make('label', {for: id}, name[0].toUpperCase() + name.slice(1)), select];
    }

    showAttention() {
      const {elements} = this.form;
      if (!elements.layer) {
        this.querySelector('.pi-controls').append(
          ...this.choice('layer', this.tokens[0].layers.length),
          ...this.choice('head', this.sizes.n_heads));
      }
      const layer = Number(elements.layer.value), head = Number(elements.head.value);
      this.weights = this.tokens.map(({layers}) => layers[layer].attention[head]);
      const last = this.weights.at(-1);
      this.at ??= [last.length - 1, last.indexOf(Math.max(...last))];
      this.note = make('p', {class: 'pi-note', 'aria-live': 'polite'});
      this.view.replaceChildren(this.attentionGrid(layer, head), this.note);
      this.noteCell(...this.at);
    }

    attentionGrid(layer, head) {
      const {tokens} = this, label = `Attention weights of layer ${layer}, head ${head}`;
      const keys = tokens.map(({piece}) => make('th', {scope: 'col'}, piece));
      const rows = tokens.map(({piece}, query) => make(
        'tr', {}, make('th', {scope: 'row'}, piece),
        ...tokens.map((_, key) => this.attentionCell(query, key))));
      const table = make('table', {class: 'pi-grid', role: 'grid', 'aria-label': label},
                         make('tr', {}, make('td', {}), ...keys), ...rows);
      table.addEventListener('keydown', event => this.moveBy(event));
      return table;
    }

    attentionCell(query, key) {
      if (key > query) return make('td', {class: 'pi-later'});
      const weight = this.weights[query][key];
      const cell = make('td', {
        style: strength(weight), tabindex: -1, title: weight.toFixed(2),
        'aria-label': this.cellText(query, key), 'data-cell': `${query} ${key}`});
      for (const type of ['focus', 'mouseenter']) {
        cell.addEventListener(type, () => this.noteCell(query, key));
      }
      return cell;
    }

    cellText(query, key) {
      const [from, to] = [query, key].map(place => this.tokens[place].piece);
      return `${from} looks at ${to} with a weight of ` +
        `${this.weights[query][key].toFixed(2)}.`;
    }

    cell(query, key) {
      return this.view.querySelector(`[data-cell="${query} ${key}"]`);
    }

    /** Say a cell's number; Tab comes back to it. */
    noteCell(query, key) {
      this.cell(...this.at).tabIndex = -1;
      this.at = [query, key];
      this.cell(query, key).tabIndex = 0;
      this.note.textContent = this.cellText(query, key);
    }

    /** Arrow keys go from cell to cell. */
    moveBy(event) {
      if (!(event.key in KEYS)) return;
      event.preventDefault();
      const [down, right] = KEYS[event.key], [query, key] = this.at;
      this.cell(query + down, key + right)?.focus();
    }

    // -------------------------------------------------------- surprise (19_evaluation)

    showSurprise() {
      const items = this.tokens.map(({piece, bits}) => make(
        'li', {style: strength(bits / MOST_BITS)}, make('span', {}, piece),
        make('b', {}, bits === null ? '–' : bits.toFixed(1))));
      const total = this.tokens.reduce((sum, {bits}) => sum + bits, 0);
      const n = new TextEncoder().encode(this.form.elements.text.value).length;
      const perByte = n ? `: ${(total / n).toFixed(2)} bits per byte` : '';
      const sum = `${total.toFixed(1)} bits for ${n} bytes${perByte}.`;
      this.view.replaceChildren(make('ol', {class: 'pi-surprise'}, ...items),
                                make('p', {class: 'pi-note'}, sum));
    }

    // ----------------------------------------------------------- all layers (12_model)

    showLayers() {
      const buttons = this.tokens.map(({piece}, place) => {
        const button = make('button', {type: 'button'}, piece);
        button.addEventListener('click', () => this.follow(place));
        return button;
      });
      this.buttons = buttons;
      const label = 'The token to follow';
      const group = make('div', {class: 'pi-tokens', role: 'group', 'aria-label': label});
      group.append(...buttons);
      this.table = make('table', {class: 'pi-layers'});
      this.view.replaceChildren(group, this.table);
      this.follow(this.token);
    }

    /** Show one token's way. */
    follow(place) {
      this.token = place;
      this.buttons.forEach((button, i) => button.setAttribute('aria-pressed', i === place));
      const {n_heads, hidden_dim, dim, vocab_size} = this.sizes, T = this.tokens.length;
      const columns = [
        '', `self_attn: weights (${n_heads}, ${T}, ${T})`,
        `mlp: open gates of ${hidden_dim}`, `stream (${dim},): size`,
        `norm, then scores (${vocab_size},): what comes next`];
      const heads = columns.map(name => make('th', {scope: 'col'}, name));
      const layers = this.tokens[place].layers.map((_, i) => this.layerRow(i, columns));
      this.table.replaceChildren(
        make('thead', {}, make('tr', {}, ...heads)),
        make('tbody', {}, this.embeddingRow(columns), ...layers));
    }

    row(name, columns, ...cells) {
      return make('tr', {}, make('th', {scope: 'row'}, name), ...cells.map(
        (children, i) => make('td', {'data-column': columns[i + 1]}, ...children)));
    }

    embeddingRow(columns) {
      const {id, embedding} = this.tokens[this.token];
      return this.row(
        `embed_tokens\u200b[${id}]`, columns, [], [], this.streamCell(embedding), []);
    }

    layerRow(layer, columns) {
      const {attention, open, stream, top} = this.tokens[this.token].layers[layer];
      const grids = attention.map((_, head) => this.smallGrid(layer, head));
      const width = `width: ${percent(open / this.sizes.hidden_dim)}`;
      const bar = make('span', {class: 'pt-bar'}, make('b', {style: width}));
      const next = top.map(({piece, prob}) => make(
        'li', {}, make('span', {}, piece), make('span', {}, percent(prob))));
      return this.row(
        `layers[${layer}]`, columns, [make('div', {class: 'pi-heads'}, ...grids)],
        [`${open}`, bar], this.streamCell(stream), [make('ol', {}, ...next)]);
    }

    /** A vector's size and its numbers, blue below zero and orange above. */
    streamCell(x) {
      const unit = 2 * size(x) || 1;
      const stops = Array.from(x, value => {
        const share = Math.min(1, Math.abs(value) / unit).toFixed(2);
        return value < 0 ? `rgb(30 110 220 / ${share})` : `rgb(240 120 0 / ${share})`;
      });
      const background = `background: linear-gradient(90deg, ${stops.join(', ')})`;
      const strip = make('span', {class: 'pi-strip', style: background});
      return [size(x).toFixed(2), strip];
    }

    /** All weights of a head; its title says where the token looks most. */
    smallGrid(layer, head) {
      const weights = this.tokens.map(({layers}) => layers[layer].attention[head]);
      const n = weights.length, own = weights[this.token], cells = [];
      weights.forEach((row, query) => row.forEach((weight, key) => {
        if (weight < 0.02) return;  // too pale to be seen
        cells.push(`<rect x="${key}" y="${query}" width="1" height="1" fill-opacity="` +
                   `${weight.toFixed(2)}"/>`);
      }));
      const key = own.indexOf(Math.max(...own)), {piece} = this.tokens[key];
      const text = `head ${head}: ${own[key].toFixed(2)} at ${piece}`;
      const figure = make('figure', {}, make('figcaption', {}, text));
      figure.insertAdjacentHTML(
        'afterbegin', `<svg viewBox="0 0 ${n} ${n}" aria-hidden="true">${cells.join('')}
          <rect class="pi-own" y="${this.token}" width="${n}" height="1"/></svg>`);
      return figure;
    }
  }

  customElements.define('piny-inside', Inside);
})();
