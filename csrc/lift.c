/* lift.c: markers -> byte automaton (Aho-Corasick) -> tables over token ids.
 *
 * From most nodes a token leads where it leads from the root, because it breaks off whatever was half written. So the root's
 * step is stored for every token, and for the other nodes only what differs. Markers do not overlap: completing one that
 * begins no longer one leads back to the root, as a regular expression reading from left to right would have it.
 */
#include <stdlib.h>
#include <string.h>

#include "thinkguard.h"

enum { MAX_NODES = 65535, MAX_EVENTS = 65535, CONTROL = 256 };

typedef struct {
  void* data;
  size_t count, capacity, item_bytes;
} tg_array;

typedef struct {
  const tg_vocab* vocab;
  const tg_patterns* patterns;
  tg_lift* lift;
  int32_t* child;  /* [num_nodes, num_symbols] of the trie, 0: none */
  int32_t* fail;   /* [num_nodes] longest proper suffix that is a node */
  int32_t* symbol; /* [num_nodes] by which it is reached */
  int32_t* parent;
  int32_t* own;    /* [num_nodes] pattern that ends here + 1 */
  int32_t* output; /* [num_nodes] longest pattern that ends here or in a suffix + 1 */
  int32_t* below;  /* [num_nodes, num_pairs] kinds of the patterns that go on from here */
  int32_t* leaf;
  int32_t* start_chars; /* [num_nodes] characters of the half-written start */
  int32_t* nearly;      /* [num_nodes, num_pairs] kinds of the markers in plain bytes that lack their last character here */
  tg_event* event;      /* [num_pairs] the one that is being read */
  tg_array events, except_token, except_step, mark_token, mark_mask;
} builder;

static tg_status push(tg_array* array, const void* item) {
  if (array->count == array->capacity) {
    size_t capacity = array->capacity ? 2 * array->capacity : 64;
    if (capacity > SIZE_MAX / array->item_bytes) return TG_TOO_LARGE;
    void* data = realloc(array->data, capacity * array->item_bytes);
    if (!data) return TG_NO_MEMORY;
    array->data = data;
    array->capacity = capacity;
  }
  memcpy((char*)array->data + array->count++ * array->item_bytes, item, array->item_bytes);
  return TG_OK;
}

/* calloc that always returns something to free, so that empty tables are no special case. */
static void* zeros(size_t count, size_t item_bytes) { return calloc(count ? count : 1, item_bytes); }

static int is_space(uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

static int is_continuation(int32_t symbol) { return symbol < CONTROL && (symbol & 0xC0) == 0x80; }

/* Whether a pattern is an end that closes nothing behind a start of a pair. */
static int is_foreign(const builder* b, int32_t pattern, int32_t pair) {
  return b->patterns->kinds[pattern] & TG_END && b->patterns->pairs[pattern] != pair;
}

/* A pattern's kinds behind a start of a pair. */
static int32_t kinds_of(const builder* b, int32_t pattern, int32_t pair) {
  return is_foreign(b, pattern, pair) ? TG_SPELLED : b->patterns->kinds[pattern];
}

static int32_t below(const builder* b, int32_t node, int32_t pair) {
  return b->below[(size_t)node * (size_t)b->patterns->num_pairs + (size_t)pair];
}

static tg_node* node_of(const builder* b, int32_t pair, int32_t node) {
  return &b->lift->nodes[(size_t)pair * (size_t)b->lift->num_nodes + (size_t)node];
}

static const tg_event* event_of(const builder* b, uint32_t step, int32_t pair) {
  return (const tg_event*)b->events.data + (size_t)(step >> 16) * (size_t)b->patterns->num_pairs + (size_t)pair;
}

/* --- the automaton --- */

static tg_status grow_trie(builder* b) {
  const tg_patterns* patterns = b->patterns;
  size_t num_symbols = (size_t)CONTROL + (size_t)patterns->num_controls;
  size_t most = 1, num_pairs = (size_t)patterns->num_pairs;
  for (int32_t p = 0; p < patterns->num_patterns; p++) {
    int32_t length = patterns->offsets[p + 1] - patterns->offsets[p];
    if (length <= 0) return TG_BAD_ARGUMENT;
    most += (size_t)length;
  }
  if (most > MAX_NODES || most * num_pairs > INT32_MAX) return TG_TOO_LARGE;
  b->child = zeros(most * num_symbols, sizeof *b->child);
  b->fail = zeros(most, sizeof *b->fail);
  b->symbol = zeros(most, sizeof *b->symbol);
  b->parent = zeros(most, sizeof *b->parent);
  b->own = zeros(most, sizeof *b->own);
  b->output = zeros(most, sizeof *b->output);
  b->below = zeros(most * num_pairs, sizeof *b->below);
  b->leaf = zeros(most, sizeof *b->leaf);
  b->start_chars = zeros(most, sizeof *b->start_chars);
  b->nearly = zeros(most * num_pairs, sizeof *b->nearly);
  tg_lift* lift = b->lift;
  lift->delta = zeros(most * num_symbols, sizeof *lift->delta);
  lift->depth = zeros(most, sizeof *lift->depth);
  lift->end_depth = zeros(most * num_pairs, sizeof *lift->end_depth);
  lift->end_of = zeros(most * num_pairs, sizeof *lift->end_of);
  lift->start_depth = zeros(most, sizeof *lift->start_depth);
  lift->start_of = zeros(most, sizeof *lift->start_of);
  lift->call_depth = zeros(most, sizeof *lift->call_depth);
  lift->call_of = zeros(most, sizeof *lift->call_of);
  lift->call_chars = zeros(most, sizeof *lift->call_chars);
  lift->nodes = zeros(most * num_pairs, sizeof *lift->nodes);
  if (!b->child || !b->fail || !b->symbol || !b->parent || !b->own || !b->output || !b->below || !b->leaf ||
      !b->start_chars || !b->nearly || !lift->delta || !lift->depth || !lift->end_depth || !lift->end_of ||
      !lift->start_depth || !lift->start_of || !lift->call_depth || !lift->call_of || !lift->call_chars || !lift->nodes)
    return TG_NO_MEMORY;
  lift->num_symbols = (int32_t)num_symbols;
  int32_t num_nodes = 1;
  for (int32_t p = 0; p < patterns->num_patterns; p++) {
    int32_t node = 0;
    for (int32_t i = patterns->offsets[p]; i < patterns->offsets[p + 1]; i++) {
      int32_t symbol = patterns->symbols[i];
      if (symbol < 0 || (size_t)symbol >= num_symbols) return TG_BAD_ARGUMENT;
      for (size_t pair = 0; pair < num_pairs; pair++)
        b->below[(size_t)node * num_pairs + pair] |= kinds_of(b, p, (int32_t)pair);
      int32_t* child = &b->child[(size_t)node * num_symbols + (size_t)symbol];
      if (!*child) {
        *child = num_nodes;
        b->symbol[num_nodes] = symbol;
        b->parent[num_nodes] = node;
        lift->depth[num_nodes] = lift->depth[node] + 1;
        num_nodes++;
      }
      node = *child;
    }
    if (!b->own[node]) b->own[node] = p + 1;
  }
  lift->num_nodes = num_nodes;
  for (int32_t n = 1; n < num_nodes; n++) b->leaf[n] = below(b, n, 0) == 0;
  return TG_OK;
}

/* Nodes are visited by depth, so that a node's suffixes are finished before it. */
static tg_status link_suffixes(builder* b) {
  tg_lift* lift = b->lift;
  int32_t num_symbols = lift->num_symbols;
  int32_t* queue = zeros((size_t)lift->num_nodes, sizeof *queue);
  int32_t* go = zeros((size_t)lift->num_nodes * (size_t)num_symbols, sizeof *go);
  if (!queue || !go) {
    free(queue);
    free(go);
    return TG_NO_MEMORY;
  }
  int32_t head = 0, tail = 0;
  queue[tail++] = 0;
  while (head < tail) {
    int32_t node = queue[head++];
    b->output[node] = b->own[node] ? b->own[node] : b->output[b->fail[node]];
    for (int32_t s = 0; s < num_symbols; s++) {
      size_t at = (size_t)node * (size_t)num_symbols + (size_t)s;
      int32_t child = b->child[at];
      int32_t by_suffix = node ? go[(size_t)b->fail[node] * (size_t)num_symbols + (size_t)s] : 0;
      if (child) {
        b->fail[child] = by_suffix;
        queue[tail++] = child;
      }
      go[at] = child ? child : by_suffix;
    }
  }
  for (size_t i = 0; i < (size_t)lift->num_nodes * (size_t)num_symbols; i++) {
    int32_t next = go[i];
    lift->delta[i] = (b->leaf[next] ? 0 : next) | (int32_t)((uint32_t)b->output[next] << 16);
  }
  free(queue);
  free(go);
  return TG_OK;
}

/* Whether some pattern of `kind`, spelled forms left out, goes on from `node` behind a start of `pair`; the first such. */
static int32_t pattern_through(const builder* b, int32_t pair, int32_t node, int32_t kind) {
  const tg_patterns* patterns = b->patterns;
  for (int32_t p = 0; p < patterns->num_patterns; p++) {
    if (!(kinds_of(b, p, pair) & kind) || kinds_of(b, p, pair) & TG_SPELLED) continue;
    int32_t at = 0;
    for (int32_t i = patterns->offsets[p]; i + 1 < patterns->offsets[p + 1]; i++) {
      at = b->child[(size_t)at * (size_t)b->lift->num_symbols + (size_t)patterns->symbols[i]];
      if (at == node) return p;
    }
  }
  return -1;
}

/* Whether a symbol begins what people would not write by chance: ASCII punctuation, or a character of U+2000 to U+2FFF, all of
 * them punctuation and symbols. */
static int is_mark(int32_t symbol) {
  return symbol == 0xE2 || (symbol > ' ' && symbol < 0x7F && !(symbol >= '0' && symbol <= '9') &&
                            !((symbol | 0x20) >= 'a' && (symbol | 0x20) <= 'z'));
}

/* Whether another marker begins with the first `length` symbols of this one. */
static int is_shared(const tg_patterns* patterns, int32_t pattern, int32_t length) {
  const int32_t* symbols = patterns->symbols + patterns->offsets[pattern];
  for (int32_t p = 0; p < patterns->num_patterns; p++) {
    const int32_t* others = patterns->symbols + patterns->offsets[p];
    int32_t i = 0, num = patterns->offsets[p + 1] - patterns->offsets[p];
    while (i < length && i < num && others[i] == symbols[i]) i++;
    if (p != pattern && i == length) return 1;
  }
  return 0;
}

/* Of fewer characters nobody takes a marker without its last one for the whole: "</think", "[THINK". */
#define LEAST_NEARLY 5

/* Note, at the nodes along a start or end in plain bytes, where nothing but its last character is missing. Only those count that
 * begin with a mark of punctuation or a symbol, for others are words, and that are the only ones to go on from there. */
static void measure_nearly(builder* b, int32_t pattern) {
  const tg_patterns* patterns = b->patterns;
  const int32_t* symbols = patterns->symbols + patterns->offsets[pattern];
  int32_t length = patterns->offsets[pattern + 1] - patterns->offsets[pattern], last = length - 1, node = 0, chars = 0;
  if (!(patterns->kinds[pattern] & (TG_START | TG_END)) || !is_mark(symbols[0])) return;
  for (int32_t i = 0; i < length; i++)
    if (symbols[i] >= CONTROL) return;
  while (last > 0 && is_continuation(symbols[last])) last--;
  for (int32_t i = 0; i + 1 < length; i++) {
    node = b->child[(size_t)node * (size_t)b->lift->num_symbols + (size_t)symbols[i]];
    chars += !is_continuation(symbols[i]);
    if (i + 1 < last || chars < LEAST_NEARLY || is_shared(patterns, pattern, i + 1)) continue;
    for (int32_t pair = 0; pair < patterns->num_pairs; pair++)
      b->nearly[(size_t)node * (size_t)patterns->num_pairs + (size_t)pair] |=
          kinds_of(b, pattern, pair) & (TG_START | TG_END | TG_SPELLED);
  }
}

static void measure_nodes(builder* b, int32_t pair) {
  tg_lift* lift = b->lift;
  int32_t* end_of = lift->end_of + (size_t)pair * (size_t)lift->num_nodes;
  int32_t* end_depth = lift->end_depth + (size_t)pair * (size_t)lift->num_nodes;
  for (int32_t n = 0; n < lift->num_nodes; n++) {
    tg_node* node = node_of(b, pair, n);
    end_of[n] = lift->start_of[n] = lift->call_of[n] = -1;
    for (int32_t c = b->leaf[n] ? 0 : n; c; c = b->fail[c]) { /* no sequence ever stands at a leaf */
      int32_t chars = 0, bytes = 0, has_control = 0;
      for (int32_t at = c; at; at = b->parent[at]) {
        int32_t symbol = b->symbol[at];
        has_control |= symbol >= CONTROL;
        chars += symbol >= CONTROL ? 2 : !is_continuation(symbol);
        bytes += symbol >= CONTROL ? b->patterns->control_bytes[symbol - CONTROL] : 1;
      }
      if (end_of[n] < 0 && below(b, c, pair) & TG_END) {
        end_of[n] = pattern_through(b, pair, c, TG_END);
        if (end_of[n] >= 0) {
          node->end_chars = chars;
          end_depth[n] = lift->depth[c];
        }
      }
      if (lift->start_of[n] < 0 && below(b, c, pair) & TG_START) {
        lift->start_of[n] = pattern_through(b, pair, c, TG_START);
        if (lift->start_of[n] >= 0) {
          node->start_bytes = bytes;
          b->start_chars[n] = chars;
          lift->start_depth[n] = lift->depth[c];
        }
      }
      if (lift->call_of[n] < 0 && below(b, c, pair) & TG_IMPLICIT) {
        lift->call_of[n] = pattern_through(b, pair, c, TG_IMPLICIT);
        lift->call_chars[n] = chars;
        lift->call_depth[n] = lift->depth[c];
      }
      if (has_control) node->reach |= below(b, c, pair);
    }
  }
}

/* --- lifting --- */

typedef struct {
  int32_t node, kinds, last, starts, count;
  int32_t pair;   /* of the last start, in this token or before it */
  int64_t behind; /* index of the first symbol behind the last marker */
} walk;

/* Whether a symbol is a marker by itself that skip_special_tokens drops: for that reader what was half written in plain
 * bytes before it goes on behind it. */
static int is_dropped_marker(const builder* b, int32_t symbol) {
  if (symbol < CONTROL || !b->patterns->control_dropped[symbol - CONTROL]) return 0;
  int32_t to = b->lift->delta[symbol], pattern = (int32_t)((uint32_t)to >> 16) - 1;
  return pattern >= 0 && !(to & 0xFFFF);
}

static void walk_symbol(const builder* b, walk* w, int32_t symbol, int64_t index) {
  int32_t before = w->node;
  int32_t to = b->lift->delta[(size_t)w->node * (size_t)b->lift->num_symbols + (size_t)symbol];
  w->node = to & 0xFFFF;
  int32_t pattern = (int32_t)((uint32_t)to >> 16) - 1;
  if (pattern < 0) return;
  int32_t kinds = kinds_of(b, pattern, w->pair);
  w->kinds |= kinds;
  w->count += kinds != TG_RECIPIENT;
  if (!is_foreign(b, pattern, w->pair)) {
    w->last = pattern + 1;
    w->behind = index + 1;
  }
  if (kinds & TG_START) {
    w->starts++;
    w->pair = b->patterns->pairs[pattern];
  }
  if (!w->node && !b->lift->nodes[before].reach && is_dropped_marker(b, symbol)) w->node = before;
}

static int64_t num_symbols_of(const tg_vocab* vocab, int32_t token) {
  return vocab->control[token] >= 0 ? 1 : vocab->offsets[token + 1] - vocab->offsets[token];
}

static int32_t symbol_at(const tg_vocab* vocab, int32_t token, int64_t index) {
  return vocab->control[token] >= 0 ? CONTROL + vocab->control[token] : vocab->text[vocab->offsets[token] + index];
}

/* What a token does from a node behind a start of a pair. */
static tg_event read_event(const builder* b, int32_t pair, int32_t node, int32_t token) {
  const tg_patterns* patterns = b->patterns;
  walk w = {.node = node, .pair = pair};
  int64_t length = num_symbols_of(b->vocab, token);
  for (int64_t i = 0; i < length; i++) walk_symbol(b, &w, symbol_at(b->vocab, token, i), i);
  tg_event e = {.kinds = w.kinds | (w.count > 1 ? TG_MULTI : 0), .starts = w.starts, .space = -1};
  if (w.starts) e.pair = w.pair;
  if (!w.last) return e;
  e.last = patterns->kinds[w.last - 1];
  for (int32_t i = patterns->offsets[w.last - 1]; i < patterns->offsets[w.last]; i++) {
    int32_t symbol = patterns->symbols[i];
    e.marker_bytes += symbol >= CONTROL ? patterns->control_bytes[symbol - CONTROL] : 1;
  }
  e.tail_bytes = (int32_t)(length - w.behind);
  if (e.last & TG_START && e.tail_bytes <= patterns->space_bytes) e.space = e.tail_bytes;
  for (int64_t i = w.behind; i < length; i++) {
    int32_t symbol = symbol_at(b->vocab, token, i);
    e.tail_visible |= !is_space((uint8_t)symbol);
    if (e.space > 0 && symbol != patterns->space[i - w.behind]) e.space = -1;
  }
  return e;
}

/* The number of a token's event from a node, where `kinds` are completed; 0: none are. */
static tg_status number_event(builder* b, int32_t kinds, int32_t node, int32_t token, int32_t* number) {
  *number = 0;
  if (!kinds) return TG_OK;
  for (int32_t pair = 0; pair < b->patterns->num_pairs; pair++) b->event[pair] = read_event(b, pair, node, token);
  for (size_t i = 1; i < b->events.count; i++) {
    if (memcmp((const char*)b->events.data + i * b->events.item_bytes, b->event, b->events.item_bytes) == 0) {
      *number = (int32_t)i;
      return TG_OK;
    }
  }
  if (b->events.count >= MAX_EVENTS) return TG_TOO_LARGE;
  *number = (int32_t)b->events.count;
  return push(&b->events, b->event);
}

static uint32_t info_of(const tg_vocab* vocab, int32_t token) {
  const uint8_t* text = vocab->text + vocab->offsets[token];
  int64_t length = vocab->offsets[token + 1] - vocab->offsets[token];
  int64_t leading = 0, continuing = 0;
  while (leading < length && is_space(text[leading])) leading++;
  while (continuing < length && is_continuation(text[continuing])) continuing++;
  uint32_t info = length ? TG_TEXT : 0;
  if (leading < length) info |= TG_VISIBLE;
  info |= (uint32_t)(length < 255 ? length : 255) << 8;
  info |= (uint32_t)(leading < 255 ? leading : 255) << 16;
  if (continuing == length) return info | (uint32_t)(length <= 3 ? length : 0) << 26;
  int64_t lead = length - 1;
  while (lead >= 0 && is_continuation(text[lead])) lead--;
  int64_t have = length - lead;
  int64_t want = text[lead] >= 0xF5 ? 1 : text[lead] >= 0xF0 ? 4 : text[lead] >= 0xE0 ? 3 : text[lead] >= 0xC2 ? 2 : 1;
  return info | (uint32_t)(want > have ? want - have : 0) << 24;
}

static tg_status lift_root(builder* b) {
  const tg_vocab* vocab = b->vocab;
  tg_lift* lift = b->lift;
  size_t num_tokens = (size_t)vocab->num_tokens;
  lift->step = zeros(num_tokens, sizeof *lift->step);
  lift->info = zeros(num_tokens, sizeof *lift->info);
  lift->tail = zeros(num_tokens, sizeof *lift->tail);
  if (!lift->step || !lift->info || !lift->tail) return TG_NO_MEMORY;
  for (int32_t t = 0; t < vocab->num_tokens; t++) {
    walk w = {0};
    int64_t length = num_symbols_of(vocab, t);
    for (int64_t i = 0; i < length; i++) walk_symbol(b, &w, symbol_at(vocab, t, i), i);
    int32_t event;
    tg_status status = number_event(b, w.kinds, 0, t, &event);
    if (status) return status;
    lift->step[t] = (uint32_t)w.node | (uint32_t)event << 16;
    lift->info[t] = info_of(vocab, t);
    int64_t end = vocab->offsets[t + 1], begin = vocab->offsets[t];
    for (int64_t i = end - begin > 4 ? end - 4 : begin; i < end; i++) lift->tail[t] = lift->tail[t] << 8 | vocab->text[i];
  }
  return TG_OK;
}

static int is_quote_or_bracket(int32_t symbol) {
  return symbol > 0 && symbol < CONTROL && strchr("\"'`([{<>", symbol) != NULL;
}

/* Whether a token that leads from `node` to `next` begins an end there, as TG_BEGINS_END says. */
static int begins_end(const builder* b, int32_t pair, int32_t node, int32_t token, int32_t next) {
  const tg_lift* lift = b->lift;
  const tg_node* to = node_of(b, pair, next);
  size_t at = (size_t)(to - lift->nodes);
  if (node_of(b, pair, node)->end_chars >= 2 || to->end_chars < 2 || to->reach) return 0;
  if (!is_mark(b->patterns->symbols[b->patterns->offsets[lift->end_of[at]]])) return 0;
  int64_t before = num_symbols_of(b->vocab, token) - lift->end_depth[at] - 1;
  return before < 0 || !is_quote_or_bracket(symbol_at(b->vocab, token, before));
}

/* Kinds of the markers in plain bytes that lack but their last character where the text ends. */
static uint32_t nearly_at(const builder* b, int32_t pair, int32_t node) {
  int32_t kinds = 0;
  for (int32_t c = node; c; c = b->fail[c]) kinds |= b->nearly[(size_t)c * (size_t)b->patterns->num_pairs + (size_t)pair];
  return (uint32_t)kinds;
}

/* The mask of a token that leads from `node` by `step`. */
static uint32_t mask_of(const builder* b, int32_t pair, int32_t node, int32_t token, uint32_t step) {
  const tg_lift* lift = b->lift;
  const tg_event* event = event_of(b, step, pair);
  const tg_node* next = node_of(b, pair, (int32_t)(step & 0xFFFF));
  uint32_t mask = (uint32_t)event->kinds | (uint32_t)next->reach << 16;
  if (!next->reach) mask |= nearly_at(b, pair, (int32_t)(step & 0xFFFF));
  if (next->end_chars > 2 || lift->call_chars[step & 0xFFFF] > 2) mask |= TG_GROWS_END;
  int64_t bytes = b->vocab->offsets[token + 1] - b->vocab->offsets[token];
  if (event->kinds == TG_IMPLICIT && event->marker_bytes + event->tail_bytes > bytes)
    mask = (mask & ~(uint32_t)TG_IMPLICIT) | TG_GROWS_END;
  if (next->end_chars >= 2 && !next->reach) mask |= TG_HALF_END;
  int only_start = next->end_chars < 2 && lift->call_chars[step & 0xFFFF] < 2 && !next->reach;
  if (b->start_chars[step & 0xFFFF] >= 2 && only_start) mask |= TG_HALF_START;
  if (begins_end(b, pair, node, token, (int32_t)(step & 0xFFFF))) mask |= TG_BEGINS_END;
  if (lift->nodes[node].reach || (!node && b->vocab->control[token] >= 0)) {
    int64_t depth = lift->depth[node] + num_symbols_of(b->vocab, token);
    if (step >> 16) {
      /* Completing what the node began leads to a node that deep, unless it is a leaf, which leads back to the root. */
      int32_t at = node;
      for (int64_t i = 0; i < num_symbols_of(b->vocab, token) && at >= 0; i++) {
        int32_t child = b->child[(size_t)at * (size_t)lift->num_symbols + (size_t)symbol_at(b->vocab, token, i)];
        at = child ? child : -1;
      }
      if (at >= 0 && b->own[at]) mask |= TG_EXTENDS;
    } else if (lift->depth[step & 0xFFFF] == depth && depth) {
      mask |= TG_EXTENDS;
    }
  }
  return mask;
}

typedef struct {
  int32_t token;
  uint32_t step;
} exception;

static int by_token(const void* left, const void* right) {
  int32_t a = ((const exception*)left)->token, b = ((const exception*)right)->token;
  return (a > b) - (a < b);
}

/* Collect the tokens of one first symbol that behave differently from `node` than from the root. */
static tg_status lift_bucket(builder* b, int32_t node, const int32_t* bucket, size_t count, tg_array* found) {
  for (size_t k = 0; k < count; k++) {
    int32_t token = bucket[k];
    walk here = {.node = node}, root = {0};
    int64_t length = num_symbols_of(b->vocab, token);
    int same = 0;
    for (int64_t i = 0; i < length && !same; i++) {
      int32_t symbol = symbol_at(b->vocab, token, i);
      walk_symbol(b, &here, symbol, i);
      walk_symbol(b, &root, symbol, i);
      same = here.node == root.node && !here.kinds && !root.kinds;
    }
    if (same) continue;
    int32_t event;
    tg_status status = number_event(b, here.kinds, node, token, &event);
    if (status) return status;
    exception e = {token, (uint32_t)here.node | (uint32_t)event << 16};
    if (e.step == b->lift->step[token]) continue;
    status = push(found, &e);
    if (status) return status;
  }
  return TG_OK;
}

static tg_status keep_mark(builder* b, int32_t pair, int32_t node, int32_t token, uint32_t mask) {
  if (!mask) return TG_OK;
  node_of(b, pair, node)->marks |= (int32_t)((mask & 0xFFFF) | mask >> 16);
  tg_status status = push(&b->mark_token, &token);
  return status ? status : push(&b->mark_mask, &mask);
}

/* A node's marks: the root's, replaced by its own where the node has an exception. Dropped from what is copied is what says of a
 * token how it goes on from the root: that it continues what is half written there, or begins an end there. */
static tg_status mark_node(builder* b, int32_t pair, int32_t node, size_t root_begin, size_t root_end) {
  tg_status status = TG_OK;
  uint32_t dropped = (uint32_t)TG_EXTENDS | (node_of(b, pair, node)->end_chars >= 2 ? (uint32_t)TG_BEGINS_END : 0);
  const int32_t* except_token = b->except_token.data;
  const uint32_t* except_step = b->except_step.data;
  size_t r = root_begin, e = (size_t)b->lift->except_offset[node], end = (size_t)b->lift->except_offset[node + 1];
  while (!status && (r < root_end || e < end)) {
    int32_t at_root = r < root_end ? ((const int32_t*)b->mark_token.data)[r] : INT32_MAX;
    if (e < end && except_token[e] <= at_root) {
      r += except_token[e] == at_root;
      status = keep_mark(b, pair, node, except_token[e], mask_of(b, pair, node, except_token[e], except_step[e]));
      e++;
    } else {
      status = keep_mark(b, pair, node, at_root, ((const uint32_t*)b->mark_mask.data)[r] & ~dropped);
      r++;
    }
  }
  return status;
}

/* The marks of all nodes, behind a start of a pair. */
static tg_status mark_nodes(builder* b, int32_t pair) {
  tg_lift* lift = b->lift;
  tg_status status = TG_OK;
  size_t root_begin = b->mark_token.count;
  for (int32_t t = 0; t < b->vocab->num_tokens && !status; t++)
    status = keep_mark(b, pair, 0, t, mask_of(b, pair, 0, t, lift->step[t]));
  size_t root_end = b->mark_token.count;
  for (int32_t n = 0; n < lift->num_nodes && !status; n++) {
    if (n && !b->leaf[n]) status = mark_node(b, pair, n, root_begin, root_end);
    if (b->mark_token.count > INT32_MAX) status = TG_TOO_LARGE;
    if (!status) lift->mark_offset[node_of(b, pair, n) - lift->nodes + 1] = (int32_t)b->mark_token.count;
  }
  return status;
}

static tg_status lift_nodes(builder* b) {
  const tg_vocab* vocab = b->vocab;
  tg_lift* lift = b->lift;
  int32_t num_symbols = lift->num_symbols;
  lift->except_offset = zeros((size_t)lift->num_nodes + 1, sizeof *lift->except_offset);
  lift->mark_offset = zeros((size_t)lift->num_nodes * (size_t)b->patterns->num_pairs + 1, sizeof *lift->mark_offset);
  size_t* first = zeros((size_t)num_symbols + 1, sizeof *first);
  size_t* fill = zeros((size_t)num_symbols + 1, sizeof *fill);
  int32_t* bucket = zeros((size_t)vocab->num_tokens, sizeof *bucket);
  tg_array found = {.item_bytes = sizeof(exception)};
  tg_status status = TG_OK;
  if (!lift->except_offset || !lift->mark_offset || !first || !fill || !bucket) status = TG_NO_MEMORY;
  if (!status) {
    for (int32_t t = 0; t < vocab->num_tokens; t++)
      if (num_symbols_of(vocab, t)) first[symbol_at(vocab, t, 0) + 1]++;
    for (int32_t s = 0; s < num_symbols; s++) first[s + 1] += first[s];
    memcpy(fill, first, ((size_t)num_symbols + 1) * sizeof *fill);
    for (int32_t t = 0; t < vocab->num_tokens; t++)
      if (num_symbols_of(vocab, t)) bucket[fill[symbol_at(vocab, t, 0)]++] = t;
  }
  for (int32_t n = 0; n < lift->num_nodes && !status; n++) {
    if (n && !b->leaf[n]) {
      found.count = 0;
      for (int32_t s = 0; s < num_symbols && !status; s++) {
        int same = lift->delta[(size_t)n * (size_t)num_symbols + (size_t)s] == lift->delta[s];
        if (same && !is_dropped_marker(b, s)) continue;
        status = lift_bucket(b, n, bucket + first[s], first[s + 1] - first[s], &found);
      }
      exception* sorted = found.data;
      if (found.count > 1) qsort(sorted, found.count, sizeof *sorted, by_token);
      for (size_t i = 0; i < found.count && !status; i++) {
        status = push(&b->except_token, &sorted[i].token);
        if (!status) status = push(&b->except_step, &sorted[i].step);
      }
    }
    if (b->except_token.count > INT32_MAX) status = TG_TOO_LARGE;
    if (!status) lift->except_offset[n + 1] = (int32_t)b->except_token.count;
  }
  for (int32_t pair = 0; pair < b->patterns->num_pairs && !status; pair++) status = mark_nodes(b, pair);
  free(first);
  free(fill);
  free(bucket);
  free(found.data);
  return status;
}

static void builder_clear(builder* b) {
  free(b->child);
  free(b->fail);
  free(b->symbol);
  free(b->parent);
  free(b->own);
  free(b->output);
  free(b->below);
  free(b->leaf);
  free(b->start_chars);
  free(b->nearly);
  free(b->event);
  free(b->events.data);
  free(b->except_token.data);
  free(b->except_step.data);
  free(b->mark_token.data);
  free(b->mark_mask.data);
}

/* Hand an array's memory over to the lift; an empty one still gets memory of its own. */
static tg_status hand_over(tg_array* array, void* field, int32_t* count) {
  void* data = array->data ? array->data : zeros(1, array->item_bytes);
  if (!data) return TG_NO_MEMORY;
  memcpy(field, &data, sizeof data);
  *count = (int32_t)array->count;
  array->data = NULL;
  return TG_OK;
}

tg_status tg_lift_new(const tg_vocab* vocab, const tg_patterns* patterns, tg_lift** out) {
  if (vocab->num_tokens < 0 || patterns->num_patterns < 0 || patterns->num_controls < 0 || patterns->num_pairs < 1)
    return TG_BAD_ARGUMENT;
  for (int32_t p = 0; p < patterns->num_patterns; p++)
    if (patterns->pairs[p] < 0 || patterns->pairs[p] >= patterns->num_pairs) return TG_BAD_ARGUMENT;
  for (int32_t t = 0; t < vocab->num_tokens; t++)
    if (vocab->control[t] >= patterns->num_controls || vocab->offsets[t + 1] < vocab->offsets[t]) return TG_BAD_ARGUMENT;
  builder b = {.vocab = vocab, .patterns = patterns};
  b.events.item_bytes = (size_t)patterns->num_pairs * sizeof(tg_event);
  b.except_token.item_bytes = b.except_step.item_bytes = b.mark_token.item_bytes = b.mark_mask.item_bytes = 4;
  b.lift = calloc(1, sizeof *b.lift);
  b.event = calloc((size_t)patterns->num_pairs, sizeof *b.event);
  tg_status status = b.lift && b.event ? push(&b.events, b.event) : TG_NO_MEMORY;
  if (!status) status = grow_trie(&b);
  if (!status) status = link_suffixes(&b);
  if (!status) {
    for (int32_t pattern = 0; pattern < patterns->num_patterns; pattern++) measure_nearly(&b, pattern);
    for (int32_t pair = 0; pair < patterns->num_pairs; pair++) measure_nodes(&b, pair);
    status = lift_root(&b);
  }
  if (!status) status = lift_nodes(&b);
  int32_t ignored;
  if (!status) status = hand_over(&b.events, &b.lift->events, &b.lift->num_events);
  if (!status) status = hand_over(&b.except_token, &b.lift->except_token, &b.lift->num_except);
  if (!status) status = hand_over(&b.except_step, &b.lift->except_step, &ignored);
  if (!status) status = hand_over(&b.mark_token, &b.lift->mark_token, &b.lift->num_marks);
  if (!status) status = hand_over(&b.mark_mask, &b.lift->mark_mask, &ignored);
  builder_clear(&b);
  if (status)
    tg_lift_free(b.lift);
  else
    *out = b.lift;
  return status;
}

void tg_lift_free(tg_lift* lift) {
  if (!lift) return;
  free(lift->step);
  free(lift->info);
  free(lift->tail);
  free(lift->except_offset);
  free(lift->except_token);
  free(lift->except_step);
  free(lift->mark_offset);
  free(lift->mark_token);
  free(lift->mark_mask);
  free(lift->events);
  free(lift->nodes);
  free(lift->delta);
  free(lift->depth);
  free(lift->end_depth);
  free(lift->end_of);
  free(lift->start_of);
  free(lift->start_depth);
  free(lift->call_of);
  free(lift->call_depth);
  free(lift->call_chars);
  free(lift);
}
