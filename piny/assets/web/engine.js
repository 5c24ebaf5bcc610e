// Piny's engine: a small Llama that tells stories, in plain JavaScript.
//
// It does what the book's Python does, in the same order; each part names its page. With
// the same seed it tells the same story as `Decoder(model, int8=True)`.

// ------------------------------------------------------------------ the model (30c_export)

const KINDS = {float32: Float32Array, int8: Int8Array};
const DAMAGED = 'the file is damaged, or none of Piny\'s; export it again.';

/** Fetch a model, which may be gzipped; `progress` gets the bytes so far, and of all. */
export async function fetchModel(url, progress = () => {}) {
  const response = await fetch(url, {cache: 'no-cache'});
  if (!response.ok) throw new Error(`${url} gives ${response.status}.`);
  const total = Number(response.headers.get('content-length')) || null;
  const reader = response.body.getReader(), chunks = [];
  let size = 0;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    chunks.push(value);
    progress(size += value.length, total);
  }
  const blob = new Blob(chunks);  // some servers have unpacked it on the way
  if (await blob.slice(0, 4).text() === 'PINY') return readModel(await blob.arrayBuffer());
  const unpacked = blob.stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(unpacked).arrayBuffer().then(readModel, () => {
    throw new Error(DAMAGED);  // the browser's own words differ from one to the next
  });
}

/** Read a model: "PINY", the header's length, the header as JSON, then all arrays. */
export function readModel(buffer) {
  const text = new TextDecoder(), bytes = new Uint8Array(buffer);
  if (text.decode(bytes.subarray(0, 4)) !== 'PINY') {
    throw new Error(DAMAGED);
  }
  const start = 8 + new DataView(buffer).getUint32(4, true);
  const {config, vocabulary, arrays} = JSON.parse(text.decode(bytes.subarray(8, start)));
  const weights = {};
  for (const {name, dtype, offset, size} of arrays) {
    weights[name] = new KINDS[dtype](buffer, start + offset, size);
  }
  return {config, vocabulary, weights};
}

// ------------------------------------------------------------ the tokenizer (02_tokenizer)

const NORMAL = 1, UNKNOWN = 2, CONTROL = 3, BYTE = 6;  // SentencePiece's types of pieces
const BOS = 1, EOS = 2, utf8 = new TextEncoder();

export class Tokenizer {
  constructor({pieces, scores, types}) {
    this.scores = scores;
    this.pieces = pieces;
    this.ids = new Map();  // of pieces that text is made of
    this.byteIds = [];
    this.bytes = pieces.map((piece, id) => this.readPiece(piece, types[id], id));
    this.longest = Math.max(...pieces.map(piece => piece.length));
  }

  /** Note a piece, and give the bytes that it adds to a text. */
  readPiece(piece, type, id) {
    if (type === BYTE) this.byteIds[Number(piece.slice(1, -1))] = id;
    if (type === NORMAL) this.ids.set(piece, id);
    if (type === UNKNOWN || type === CONTROL) return new Uint8Array();
    if (type === BYTE) return Uint8Array.of(Number(piece.slice(1, -1)));
    return utf8.encode(piece.replaceAll('▁', ' '));
  }

  /** Token ids of a text, after <s>. */
  encode(text) {
    const whole = text.replace(/\p{Surrogate}/gu, '\ufffd');  // halves of a character
    const symbols = whole && [...('▁' + whole.replaceAll(' ', '▁'))];
    const ids = [BOS];
    for (const symbol of this.merge(symbols)) {
      const id = this.ids.get(symbol);
      if (id !== undefined) ids.push(id);
      else ids.push(...Array.from(utf8.encode(symbol), byte => this.byteIds[byte]));
    }
    return ids;
  }

  /** Merge neighbours, the pair with the highest score first, of equals the leftmost. */
  merge(symbols) {
    const score = i => this.scores[this.ids.get(symbols[i] + symbols[i + 1])] ?? -Infinity;
    const scores = Array.from({length: symbols.length}, (_, i) => score(i));
    for (;;) {
      let best = 0;
      for (let i = 1; i < scores.length; i++) if (scores[i] > scores[best]) best = i;
      if (!(scores[best] > -Infinity)) return symbols;
      symbols.splice(best, 2, symbols[best] + symbols[best + 1]);
      scores.splice(best, 1);
      if (best > 0) scores[best - 1] = score(best - 1);
      scores[best] = score(best);
    }
  }

  /** What a token adds to a text, by itself. */
  textOf(id) {
    return id === EOS ? '(end)' : new TextDecoder().decode(this.bytes[id]);
  }
}

/** Text from tokens as they come; a character is never cut (`stream_text`). */
export class TextStream {
  constructor(tokenizer) {
    this.bytes = tokenizer.bytes;
    this.decoder = new TextDecoder('utf-8', {ignoreBOM: true});
    this.atStart = true;
  }

  push(id) {
    const text = this.decoder.decode(this.bytes[id], {stream: true});
    if (!text || !this.atStart) return text;
    this.atStart = false;
    return text.replace(/^ /, '');
  }

  end() {  // what is left of an unfinished character, as U+FFFD
    return this.decoder.decode();
  }
}

// --------------------------------------------------- one token through the model (93_step)

/** Four rows of eight-bit weights at once: y = weight @ x, times scales and x's factor. */
function multiply({weight, scale}, x, length, factor, y) {
  const n = scale.length, quarter = (n + 3) >> 2;
  for (let row = 0; row < quarter; row++) {  // at the end some rows come twice
    const r0 = row, r1 = Math.min(row + quarter, n - 1);
    const r2 = Math.min(row + 2 * quarter, n - 1), r3 = Math.min(row + 3 * quarter, n - 1);
    const i = r0 * length, j = r1 * length, k = r2 * length, m = r3 * length;
    let a = 0, b = 0, c = 0, d = 0;  // whole numbers of 32 bits: nothing is rounded
    for (let at = 0; at < length; at++) {
      const value = x[at];
      a = (a + weight[i + at] * value) | 0;
      b = (b + weight[j + at] * value) | 0;
      c = (c + weight[k + at] * value) | 0;
      d = (d + weight[m + at] * value) | 0;
    }
    y[r0] = a * scale[r0] * factor;
    y[r1] = b * scale[r1] * factor;
    y[r2] = c * scale[r2] * factor;
    y[r3] = d * scale[r3] * factor;
  }
}

/** Round x to 127 levels, and a billionth (16b_fused); give what a one is worth. */
function quantizeInput(x, inputs) {
  let largest = 1e-30;
  for (let i = 0; i < x.length; i++) largest = Math.max(largest, Math.abs(x[i]));
  const perOne = (127 + 2 ** -30) / largest;
  const shift = 1.5 * 2 ** 52;  // there doubles are whole numbers
  for (let i = 0; i < x.length; i++) inputs[i] = (x[i] * perOne + shift) - shift;
  return 1 / perOne;
}

/** RMSNorm (07_rmsnorm). */
function normalize(x, weight, eps, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * x[i];
  const factor = 1 / Math.sqrt(sum / x.length + eps);
  for (let i = 0; i < x.length; i++) y[i] = x[i] * factor * weight[i];
}

/** Attention of one head over the cache up to `end` (09_attention); `weights` are kept. */
function attend(query, keys, values, end, weights, y) {
  const size = query.length;
  let largest = -Infinity, total = 0;
  for (let s = 0; s < end; s++) {
    let score = 0;
    for (let d = 0; d < size; d++) score += query[d] * keys[s * size + d];
    weights[s] = score;
    largest = Math.max(largest, score);
  }
  for (let s = 0; s < end; s++) total += weights[s] = Math.exp(weights[s] - largest);
  y.fill(0);
  for (let s = 0; s < end; s++) {
    const weight = weights[s] /= total;
    for (let d = 0; d < size; d++) y[d] += weight * values[s * size + d];
  }
}

/** A model made ready for telling: tokens and a cache in, scores of the next token out. */
export class Decoder {
  constructor({config, weights}) {
    Object.assign(this, config);  // dim, hidden_dim, n_layers, n_heads, n_kv_heads, …
    this.weights = weights;
    this.matrices = {};
    for (const name of ['qkv', 'out', 'gate_up', 'down']) {
      this.matrices[name] = this.byLayer(weights[name], weights[`${name}_scale`]);
    }
    this.head = {weight: weights.head, scale: weights.head_scale};
    const {dim, hidden_dim, n_heads, n_kv_heads, head_size} = config;
    this.inputs = new Int32Array(Math.max(dim, hidden_dim, n_heads * head_size));
    this.x = new Float64Array(dim);  // the stream
    this.z = new Float64Array(dim);
    this.heads = new Float64Array((n_heads + 2 * n_kv_heads) * head_size);
    this.mixed = new Float64Array(n_heads * head_size);
    this.gateUp = new Float64Array(2 * hidden_dim);
    this.attention = Array.from({length: n_heads}, () => new Float64Array(this.context));
  }

  byLayer(weight, scale) {
    const rows = scale.length / this.n_layers, size = weight.length / this.n_layers;
    return Array.from({length: this.n_layers}, (_, i) => ({
      weight: weight.subarray(i * size, (i + 1) * size),
      scale: scale.subarray(i * rows, (i + 1) * rows),
    }));
  }

  /** An empty cache (17_decoder): keys and values of all slots, by layer and head. */
  newCache() {
    const empty = () => Array.from({length: this.n_layers * this.n_kv_heads},
                                   () => new Float64Array(this.context * this.head_size));
    return {keys: empty(), values: empty(), length: 0};
  }

  multiply(matrix, x, y) {
    const factor = quantizeInput(x, this.inputs);
    multiply(matrix, this.inputs, x.length, factor, y);
  }

  norm(name, layer, y) {
    const weight = this.weights[name].subarray(layer * this.dim, (layer + 1) * this.dim);
    normalize(this.x, weight, this.norm_eps, y);
  }

  embedding(token) {
    return this.weights.embed.subarray(token * this.dim, (token + 1) * this.dim);
  }

  /** Read one token into the cache; the stream is then what the head takes. */
  read(token, cache, afterLayer = () => {}) {  // 12_model
    const {x, z, dim} = this;
    x.set(this.embedding(token));
    for (let layer = 0; layer < this.n_layers; layer++) {
      this.attentionLayer(layer, cache);
      for (let i = 0; i < dim; i++) x[i] += z[i];
      this.feedForwardLayer(layer);
      for (let i = 0; i < dim; i++) x[i] += z[i];
      afterLayer();
    }
    this.norm('norm', 0, x);
    cache.length++;
  }

  attentionLayer(layer, cache) {
    const {heads, mixed, head_size, n_heads, n_kv_heads} = this;
    this.norm('norm1', layer, this.z);
    this.multiply(this.matrices.qkv[layer], this.z, heads);
    this.rotate(cache.length);
    for (let h = 0; h < n_kv_heads; h++) {
      const key = (n_heads + h) * head_size, value = key + n_kv_heads * head_size;
      const slot = cache.length * head_size, at = layer * n_kv_heads + h;
      cache.keys[at].set(heads.subarray(key, key + head_size), slot);
      cache.values[at].set(heads.subarray(value, value + head_size), slot);
    }
    for (let h = 0; h < n_heads; h++) {
      const at = layer * n_kv_heads + Math.floor(h * n_kv_heads / n_heads);
      const start = h * head_size, end = start + head_size;
      attend(heads.subarray(start, end), cache.keys[at], cache.values[at], cache.length + 1,
             this.attention[h], mixed.subarray(start, end));
    }
    this.multiply(this.matrices.out[layer], mixed, this.z);
  }

  /** Turn each pair of dimensions of queries and keys (08_rope), and scale queries. */
  rotate(position) {
    const {heads, head_size, n_heads, weights: {cos, sin}} = this, half = head_size / 2;
    for (let h = 0; h < n_heads + this.n_kv_heads; h++) {
      const scale = h < n_heads ? head_size ** -0.5 : 1;
      for (let j = 0; j < half; j++) {
        const at = h * head_size + 2 * j, a = heads[at], b = heads[at + 1];
        const turn = position * half + j;
        const real = cos[turn] * scale, imag = sin[turn] * scale;
        heads[at] = a * real - b * imag;
        heads[at + 1] = a * imag + b * real;
      }
    }
  }

  feedForwardLayer(layer) {  // 10_swiglu
    const {gateUp, hidden_dim} = this, hidden = gateUp.subarray(hidden_dim);
    this.norm('norm2', layer, this.z);
    this.multiply(this.matrices.gate_up[layer], this.z, gateUp);
    for (let i = 0; i < hidden_dim; i++) {
      const gate = gateUp[i];
      hidden[i] *= gate / (1 + Math.exp(-gate));
    }
    this.multiply(this.matrices.down[layer], hidden, this.z);
  }

  /** Scores of the next token, after `read`. */
  logits(states = this.x) {
    const logits = new Float32Array(this.vocab_size);
    this.multiply(this.head, states, logits);
    return logits;
  }

  /** The same as if the stream ended at this layer: through the last norm at once. */
  logitsHere() {
    this.norm('norm', 0, this.z);
    return this.logits(this.z);
  }
}

// ---------------------------------------------------------- the next token (16_next_token)

/** Torch's random numbers: the Mersenne Twister (Matsumoto and Nishimura 1998). */
export class MersenneTwister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = Number(BigInt.asUintN(32, BigInt(seed)));
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1];
      this.state[i] = Math.imul(1812433253, last ^ last >>> 30) + i;
    }
    this.place = 624;
  }

  renew() {
    const {state} = this;
    for (let i = 0; i < 624; i++) {
      const y = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7fffffff;
      state[i] = state[(i + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.place = 0;
  }

  /** A number from 0 to 1, of 24 bits, as `torch.rand` draws it. */
  uniform() {
    if (this.place === 624) this.renew();
    let y = this.state[this.place++];
    y ^= y >>> 11;
    y ^= y << 7 & 0x9d2c5680;
    y ^= y << 15 & 0xefc60000;
    y ^= y >>> 18;
    return (y & 0xffffff) / 2 ** 24;
  }
}

/** Logits with the repetition penalty. */
export function penalize(logits, ids, penalty) {
  const scores = logits.slice();
  if (penalty === 1) return scores;
  for (const id of new Set(ids)) {
    scores[id] = scores[id] > 0 ? scores[id] / penalty : scores[id] * penalty;
  }
  return scores;
}

/** Token ids from likely to unlikely, with their probabilities at a temperature. */
export function sortedProbs(logits, temperature) {
  const scores = logits.map(score => score / temperature);
  const ids = Uint32Array.from(scores, (_, id) => id);
  ids.sort((a, b) => scores[b] - scores[a] || a - b);
  const probs = Float64Array.from(ids, id => Math.exp(scores[id] - scores[ids[0]]));
  const total = probs.reduce((sum, prob) => sum + prob, 0);
  return {ids, probs: probs.map(prob => prob / total)};
}

/** How many of the likeliest tokens are left after top-k, then top-p, then min-p. */
export function keepCounts(probs, {top_k, top_p, min_p}) {
  const afterTopK = Math.min(top_k || probs.length, probs.length);
  const total = probs.subarray(0, afterTopK).reduce((sum, prob) => sum + prob, 0);
  let afterTopP = 0;
  for (let before = 0; afterTopP < afterTopK && before < (top_p ?? Infinity); afterTopP++) {
    before += probs[afterTopP] / total;
  }
  let afterMinP = afterTopP;
  while (min_p && afterMinP > 1 && probs[afterMinP - 1] < min_p * probs[0]) afterMinP--;
  return [afterTopK, afterTopP, afterMinP];
}

/** The place at which the cumulative sum of the first n probabilities passes a number. */
export function draw(probs, n, uniform) {
  const total = probs.subarray(0, n).reduce((sum, prob) => sum + prob, 0);
  let place = 0, sum = probs[0];
  while (place < n - 1 && sum <= uniform * total) {
    place++;
    sum += probs[place];
  }
  return place;
}

// ---------------------------------------------------------------- a story (17b_generation)

/** A story in the making. */
export class Sequence {
  constructor(decoder, tokenizer, prompt, settings) {
    const {context} = decoder;
    if (prompt.length > context * tokenizer.longest) {
      throw new Error(`The prompt has ${prompt.length} characters, but the context of ` +
                      `this model is ${context} tokens; shorten it.`);
    }
    Object.assign(this, {decoder, tokenizer, settings, finishReason: null, slides: 0});
    this.ids = tokenizer.encode(prompt);
    if (this.ids.length >= context) {
      throw new Error(`The prompt has ${this.ids.length} tokens, but the context of this ` +
                      `model is ${context}; shorten it.`);
    }
    this.promptLength = this.ids.length;
    this.window = [...this.ids];  // what the model sees
    this.cache = decoder.newCache();
    this.random = new MersenneTwister(settings.seed);
  }

  /** Read what has not been read yet, and score the next token. */
  logits() {
    if (this.cache.length < this.window.length) {
      while (this.cache.length < this.window.length) {
        this.decoder.read(this.window[this.cache.length], this.cache);
      }
      this.lastLogits = this.decoder.logits().subarray(0, this.tokenizer.bytes.length);
    }
    return this.lastLogits;
  }

  /** The next token's distribution, and how many tokens each setting leaves of it. */
  distribution() {
    const {temperature, repetition_penalty} = this.settings;
    const logits = penalize(this.logits(), this.ids, repetition_penalty);
    const {ids, probs} = sortedProbs(logits, temperature || 1e-3);
    if (!Number.isFinite(probs[0])) {
      throw new Error('The scores are not finite numbers: the weights are damaged.');
    }
    return {ids, probs, counts: keepCounts(probs, this.settings)};
  }

  /** Choose the next token; each takes a random number, used or not. */
  choose({ids, probs, counts} = this.distribution()) {
    const uniform = this.random.uniform();
    return ids[this.settings.temperature === 0 ? 0 : draw(probs, counts[2], uniform)];
  }

  /** Add a token, and end the story where it has to end. */
  append(id) {
    this.ids.push(id);
    this.window.push(id);
    const {max_new_tokens, slide} = this.settings;
    const full = this.window.length >= this.decoder.context;
    const longEnough = this.ids.length - this.promptLength === max_new_tokens;
    if (id === EOS) this.finishReason = 'eos';
    else if (longEnough) this.finishReason = 'max_new_tokens';
    else if (full && !slide) this.finishReason = 'context';
    else if (full) this.slideOn();
  }

  /** Past the context: go on with the newer half. */
  slideOn() {
    this.window = [BOS, ...this.window.slice(-(this.decoder.context >> 1))];
    this.cache = this.decoder.newCache();
    this.slides++;
  }
}

// ------------------------------------------------ what a text passes through (30c_export)

const N_TOP = 5;  // likeliest next tokens of each layer

/** How little a token was expected, in bits (19_evaluation). */
function surprise(logits, id) {
  const largest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const total = logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0);
  return (Math.log(total) + largest - logits[id]) / Math.LN2;
}

/** What a layer shows of the token that it has just read, the last of `n`. */
function recordLayer(decoder, tokenizer, n) {
  const {attention, gateUp, hidden_dim, x} = decoder;
  const open = gateUp.subarray(0, hidden_dim).filter(gate => gate > 0).length;
  const logits = decoder.logitsHere().subarray(0, tokenizer.bytes.length);
  const {ids, probs} = sortedProbs(logits, 1);
  return {
    attention: attention.map(weights => weights.slice(0, n)),  // of each head
    open,  // gates above zero, of hidden_dim (10_swiglu)
    stream: x.slice(),  // 12_model
    top: Array.from(ids.subarray(0, N_TOP), (id, place) => (
      {id, piece: tokenizer.pieces[id], prob: probs[place]})),
  };
}

/** Run a text, and give of each token: piece, surprise, embedding, and what layers did. */
export function lookInside(decoder, tokenizer, text, most) {
  const ids = text.length > most * tokenizer.longest ? [] : tokenizer.encode(text);
  if (!ids.length || ids.length > most) {
    const given = ids.length ? `${ids.length} tokens` : `${text.length} characters`;
    throw new Error(`The text has ${given}, but ${most} tokens are all that is shown; ` +
                    'shorten it.');
  }
  const cache = decoder.newCache(), tokens = [];
  let logits = null;
  for (const id of ids) {
    const bits = logits && surprise(logits, id), layers = [];
    decoder.read(id, cache, () => {
      layers.push(recordLayer(decoder, tokenizer, tokens.length + 1));
    });
    logits = decoder.logits().subarray(0, tokenizer.bytes.length);
    const embedding = decoder.embedding(id).slice();
    tokens.push({id, piece: tokenizer.pieces[id], bits, embedding, layers});
  }
  return tokens;
}
