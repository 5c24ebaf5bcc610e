// Tells in a thread of its own: loads the model when it is asked for the first story.
//
// It takes {type: 'tell' | 'choose', prompt, settings}, {type: 'go_on' | 'settings',
// settings}, {type: 'take', id}, {type: 'stop'} and {type: 'inside', text}. It answers with
// {type: 'loading', size, total}, {type: 'begin'}, {type: 'text', text}, {type:
// 'candidates', candidates}, {type: 'speed', n, seconds}, {type: 'end', reason}, {type:
// 'inside', tokens, sizes} and {type: 'error', message}.

import {Decoder, fetchModel, lookInside, Sequence} from './engine.js';
import {TextStream, Tokenizer} from './engine.js';

const N_CANDIDATES = 12, CUTS = ['top-k', 'top-p', 'min-p'];
const MOST_INSIDE = 48;  // tokens of a text to look inside: a grid of more shows little
let loaded = null;  // a promise of the decoder and its tokenizer
let sequence = null, stream = null;
let telling = 0;  // the number of the telling that goes on; any message ends the last one
let asked = 0;  // the number of the last message that waits for the model

async function load() {
  const url = new URL('model.piny', import.meta.url);
  const model = await fetchModel(url, (size, total) => {
    if (asked === telling) postMessage({type: 'loading', size, total});
  });
  return {decoder: new Decoder(model), tokenizer: new Tokenizer(model.vocabulary)};
}

/** Let messages in: a stop could not be heard otherwise. */
const channel = new MessageChannel();
function pause() {
  return new Promise(resolve => {
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(null);
  });
}

/** The model, or null: several messages may wait for it, and the last one counts. */
async function ready(number) {
  asked = number;
  loaded ??= load();
  const model = await loaded.catch(error => {
    loaded = null;  // the next attempt loads again
    throw new Error(`The model could not be loaded: ${error.message}`);
  });
  return number === telling ? model : null;
}

/** Read a prompt. */
async function begin(number, {prompt, settings}) {
  const model = await ready(number);
  if (!model) return false;
  const {decoder, tokenizer} = model;
  sequence = new Sequence(decoder, tokenizer, prompt, settings);
  stream = new TextStream(tokenizer);
  postMessage({type: 'begin'});
  postMessage({type: 'text', text: sequence.ids.map(id => stream.push(id)).join('')});
  return true;
}

/** The likeliest next tokens, and what the settings leave of them (29b_explorers). */
function candidates({ids, probs, counts}) {
  const left = probs.subarray(0, counts[2]).reduce((sum, prob) => sum + prob, 0);
  return Array.from(ids.subarray(0, N_CANDIDATES), (id, place) => ({
    id,
    text: sequence.tokenizer.textOf(id),
    prob: probs[place],
    kept: place < counts[2] ? probs[place] / left : 0,
    cutBy: CUTS[counts.findIndex(count => place >= count)] ?? null,
  }));
}

function showCandidates() {
  const ended = sequence.finishReason === 'eos';
  const shown = ended ? [] : candidates(sequence.distribution());
  postMessage({type: 'candidates', candidates: shown});
}

function append(id) {
  sequence.append(id);
  const text = stream.push(id) + (sequence.finishReason === 'eos' ? stream.end() : '');
  postMessage({type: 'text', text});
}

/** Go on with a story that had ended, by a number or by the context. */
function reopen() {
  sequence.finishReason = null;
  if (sequence.window.length >= sequence.decoder.context) sequence.slideOn();
}

/** Tell until the story ends, or another message comes. */
async function tell(number) {
  let n = 0, start = null;
  while (number === telling && !sequence.finishReason) {
    const distribution = sequence.distribution();
    start ??= performance.now();  // the prompt has been read
    postMessage({type: 'candidates', candidates: candidates(distribution)});
    append(sequence.choose(distribution));
    n++;
    postMessage({type: 'speed', n, seconds: (performance.now() - start) / 1000});
    await pause();
  }
  if (number !== telling) return;
  postMessage({type: 'end', reason: sequence.finishReason});
  showCandidates();
}

const ACTIONS = {
  async tell(number, message) {
    if (await begin(number, message)) await tell(number);
  },
  async choose(number, message) {
    if (await begin(number, message)) showCandidates();
  },
  async go_on(number, {settings}) {
    sequence.settings = settings;
    sequence.promptLength = sequence.ids.length;  // the most new tokens count from here
    reopen();
    await tell(number);
  },
  settings(number, {settings}) {
    sequence.settings = settings;
    showCandidates();
  },
  take(number, {id}) {
    reopen();
    append(id);
    if (sequence.finishReason === 'eos') postMessage({type: 'end', reason: 'eos'});
    showCandidates();
  },
  stop() {
    postMessage({type: 'end', reason: 'stop'});
    if (sequence) showCandidates();
  },
  async inside(number, {text}) {
    const model = await ready(number);
    if (!model) return;
    const {decoder, tokenizer} = model, {dim, hidden_dim, n_heads, vocab_size} = decoder;
    const most = Math.min(MOST_INSIDE, decoder.context);
    const tokens = lookInside(decoder, tokenizer, text, most);
    const sizes = {dim, hidden_dim, n_heads, vocab_size};
    postMessage({type: 'inside', tokens, sizes});
  },
};

onmessage = async ({data}) => {
  telling++;
  try {
    await ACTIONS[data.type](telling, data);
  } catch (error) {
    postMessage({type: 'error', message: error.message});
  }
};
