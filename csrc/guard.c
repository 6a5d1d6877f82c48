/* guard.c: a step of a whole batch, as guard.h describes it. */
#include "guard.h"

#include "machine.h"

static int64_t item_bytes(const tg_logits* logits) { return logits->dtype == TG_FLOAT32 ? 4 : 2; }

static void edit(const tg_program* program, const tg_policy* policy, const tg_action* action, const tg_logits* logits,
                 int32_t row) {
  char* data = (char*)logits->data + row * logits->row_stride * item_bytes(logits);
  int32_t done = tg_apply(program, policy, action, data, (tg_dtype)logits->dtype, logits->stride, logits->width);
  if (!done && logits->banned) TG_ALONE* logits->banned = 1; /* whoever does it writes the same */
}

static void copy_loop(const tg_loop* from, tg_loop* to) {
  TG_EACH(i, 0, (int32_t)(sizeof *to / sizeof(int32_t)))((int32_t*)to)[i] = ((const int32_t*)from)[i];
  tg_meet();
}

/* The rows of one sequence: its own, and those of its drafts. */
typedef struct {
  const tg_ids* inputs;
  const tg_ids* offsets; /* NULL: one row alone */
  int32_t first;
  tg_action* actions;
} rows_of;

/* Fewer tokens are taken one by one. */
#define SHORT (TG_LANES < 16 ? TG_LANES : 16)

/* Bring a sequence from where it stood to its last row. `slot` is what is known of it, folded = -1: it begins at its prompt;
 * where it stands behind the committed tokens is written into `kept`. */
static void walk(const tg_program* program, const tg_policy* policy, tg_slot slot, tg_slot* kept, tg_loop* loop,
                 const tg_ids* tokens, int32_t total, const rows_of* rows, const tg_logits* logits) {
  int64_t at = slot.folded;
  int32_t raw = 0, silent = 1;
  int in_prompt = at < 0;
  if (!policy->loop_tokens) loop = NULL;
  if (in_prompt) {
    at = tg_turn_start(program, tokens, slot.prompt, 0, &raw);
    tg_begin_prompt(program, policy, slot.state.limit, &slot.state, loop);
  }
  TG_SHARED int32_t window[TG_MOST_LANES]; /* tokens base .. end_of_window, read at once: reading may be slow */
  int64_t base = 0, end_of_window = 0;
  TG_ALONE window[0] = -1; /* compilers do not see that it is written before it is read */

  int32_t index = 0; /* of the row that is decided next */
  for (;;) {
    if (in_prompt && at >= slot.prompt) {
      tg_end_prompt(program, policy, raw, silent, &slot.state);
      if (raw && !slot.guards_raw)
        slot.state.flags = TG_STATE_INERT | TG_STATE_NO_CHAT;
      else
        tg_open(program, policy, tokens, slot.prompt, &slot.state);
      in_prompt = 0;
    } else if (at < total + index) {
      int64_t end = in_prompt ? slot.prompt : total;
      if (at < end && (at >= end_of_window || (end_of_window < end && end_of_window - at < SHORT))) {
        base = at;
        end_of_window = at + TG_LANES < end ? at + TG_LANES : end;
        tg_meet(); /* all are done with the last one */
        if (at + TG_LANE < end_of_window) window[TG_LANE] = tg_id(tokens, at + TG_LANE);
        tg_meet();
      }
      int32_t num_next = at < end ? (int32_t)(end_of_window - at) : 0, taken = 0; /* none: a draft is next */
      if (TG_LANES > 1 && num_next >= SHORT)
        taken = tg_take_run(program, policy, &slot.state, window + (at - base), num_next, !in_prompt, &silent);
      if (!taken) {
        int32_t token = num_next ? window[at - base] : tg_id(rows->inputs, rows->first + index);
        tg_take(program, policy, &slot.state, loop, token, !in_prompt, &silent);
        taken = 1;
      }
      at += taken;
    } else {
      tg_action action;
      tg_decide(program, policy, &slot.state, &action);
      int32_t row = rows->first + index;
      if (!rows->actions)
        edit(program, policy, &action, logits, row);
      else
        TG_ALONE rows->actions[row] = action;
      if (!index) {
        slot.folded = (int32_t)at;
        TG_ALONE* kept = slot;
      }
      row++;
      index++;
      if (!rows->offsets || row >= logits->num_rows || tg_id(rows->offsets, row) != index) return;
      if (index == 1 && loop) { /* drafts are walked in a copy of the side block */
        copy_loop(loop, loop + 1);
        loop++;
      }
    }
  }
}

void tg_guard_slot(const tg_slots_step* step, int32_t row) {
  if (row < 0 || row >= step->logits.num_rows || tg_id(&step->offset_of, row)) return;
  int32_t at = tg_id(&step->slot_of, row);
  if (at < 0 || at >= step->num_slots) return;
  tg_slot slot = step->slots[at];
  TG_SHARED int32_t lengths[2]; /* read once: they may be the host's memory, and all lanes have to see the same */
  TG_ALONE {
    lengths[0] = tg_id(&step->total, at);
    lengths[1] = tg_id(&step->prompt, at);
  }
  tg_meet(); /* all have read what one of them writes */
  int32_t total = lengths[0], prompt = lengths[1];
  if (!slot.is_guarded || total < 0 || total > step->capacity || prompt < 0 || prompt > total) return;
  if (slot.folded > total || slot.folded < prompt) slot.folded = -1; /* not the tokens that the slot had */
  slot.prompt = prompt;
  tg_ids tokens = step->tokens;
  tokens.data = (const char*)tokens.data + at * step->tokens_stride * tokens.bytes;
  rows_of rows = {&step->inputs, &step->offset_of, row, step->actions};
  const tg_policy* policy = (const tg_policy*)(step->policies + at * step->policy_size);
  walk(&step->program, policy, slot, &step->slots[at], step->loops + 2 * (int64_t)at, &tokens, total, &rows, &step->logits);
}

/* Whether the first tokens of a sequence are those that were seen. */
static int is_prefix(const tg_ids* tokens, const int32_t* seen, int32_t num_tokens) {
  int same = 1;
  for (int32_t from = 0; from < num_tokens && same; from += TG_LANES) {
    int32_t at = from + TG_LANE;
    same = !tg_any(at < num_tokens && tg_id(tokens, at) != seen[at]);
  }
  return same;
}

/* The sequence of the last step, the row's own first, that all but the last of these tokens were seen in; -1: none. */
static int32_t find_seen(const tg_sequences_step* step, const tg_ids* tokens, int32_t own) {
  for (int32_t i = own < step->num_seen ? -1 : 0; i < step->num_seen; i++) {
    int32_t other = i < 0 ? own : i;
    const tg_slot* theirs = &step->slots[other];
    if (theirs->folded < step->num_tokens - 1 || theirs->prompt > step->num_tokens) continue;
    if (is_prefix(tokens, step->seen + other * (int64_t)step->capacity, step->num_tokens - 1)) return other;
  }
  return -1;
}

void tg_guard_sequence(const tg_sequences_step* step, int32_t row) {
  int32_t num = step->num_tokens;
  if (row < 0 || row >= step->logits.num_rows || num < 1 || num > step->capacity) return;
  const tg_policy* policy = (const tg_policy*)step->policy;
  tg_ids tokens = step->tokens;
  tokens.data = (const char*)tokens.data + row * step->tokens_stride * tokens.bytes;
  tg_slot slot = {.folded = -1,
                  .prompt = step->prompt >= 0 && step->prompt < num ? step->prompt : num,
                  .is_guarded = 1,
                  .guards_raw = 1,
                  .state = {.limit = step->limit}};
  tg_loop* loop = step->next_loops + 2 * (int64_t)row;
  int32_t other = find_seen(step, &tokens, row);
  if (other >= 0) {
    const tg_slot* theirs = &step->slots[other];
    const int32_t* seen = step->seen + other * (int64_t)step->capacity;
    int again = theirs->folded >= num && seen[num - 1] == tg_id(&tokens, num - 1);
    if (theirs->folded == num - 1 || (theirs->folded == num && again)) {
      slot = *theirs;
      if (policy->loop_tokens) copy_loop(step->loops + 2 * (int64_t)other, loop);
    } else if (num - 1 >= theirs->prompt || again) { /* drafts were dropped: walked again behind the same prompt */
      slot.prompt = theirs->prompt;
    }
  }
  int32_t* kept = step->next_seen + row * (int64_t)step->capacity;
  TG_EACH(i, 0, num) kept[i] = tg_id(&tokens, i);
  rows_of rows = {NULL, NULL, row, NULL};
  walk(&step->program, policy, slot, &step->next_slots[row], loop, &tokens, num, &rows, &step->logits);
}

void tg_guard_edit(const tg_edits_step* step, int32_t index) {
  if (index < 0 || index >= step->num_edits) return;
  const tg_edit* at = &step->edits[index];
  if (at->row < 0 || at->row >= step->logits.num_rows || at->policy < 0 || at->policy >= step->num_policies) return;
  const tg_policy* policy = (const tg_policy*)(step->policies + at->policy * step->policy_size);
  edit(&step->program, policy, &at->action, &step->logits, at->row);
}
