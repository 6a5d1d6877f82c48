/* guard.h: a step of a whole batch over a host's own buffers.
 *
 * Each function below does all the work of one sequence, so that its state has one reader and one writer: it accounts for what
 * was committed since the last step, decides, and edits the sequence's rows of logits. On a GPU it is the work of one block of
 * lanes (guard.cu launches one kernel a step); on the host it is called for one sequence after the other. It must equal
 *
 *     for token in committed[folded:]: tg_advance(program, policy, state, loop, token)
 *     for draft, row in the sequence's rows of this step: tg_decide, tg_apply, tg_advance over the draft
 *
 * with the state behind the committed tokens kept. Runs of plain tokens are taken together.
 *
 * Pointers lie in the memory of the device that runs it. Every index that comes from a host's buffer is checked: what is out
 * of range is left alone. Nothing here allocates, waits or fails.
 */
#ifndef THINKGUARD_GUARD_H
#define THINKGUARD_GUARD_H

#include "thinkguard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of logits: row r, token t is data[r * row_stride + t * stride], in elements of `dtype`. */
typedef struct {
  void* data;
  int64_t row_stride;
  int64_t stride;
  int32_t* banned; /* set to 1 where what was due in a row had been banned before, as tg_apply returns it; NULL: not noted */
  int32_t num_rows;
  int32_t width;
  int32_t dtype; /* tg_dtype */
  int32_t unused;
} tg_logits;

/* What is kept of one sequence between two steps. */
typedef struct {
  int32_t folded;     /* tokens accounted for, the prompt's included; -1: none yet */
  int32_t prompt;     /* of them the prompt's */
  int32_t is_guarded; /* 0: the sequence is left alone */
  int32_t guards_raw; /* 0: left alone too if its prompt shows no chat */
  tg_state state;     /* before the first step only its limit is read */
} tg_slot;

/* A step of a host that gives each sequence a slot (vLLM's V2 runner). A slot's rows follow each other, its drafts' behind the
 * one that every step has. */
typedef struct {
  tg_program program;      /* by value: its pointers are then among the kernel's arguments */
  tg_slot* slots;          /* [num_slots] */
  tg_loop* loops;          /* [num_slots, 2] behind the committed tokens, and for drafts */
  const int32_t* policies; /* [num_slots, policy_size] each a tg_policy, or one for each pair, with the tokens */
  int64_t policy_size;
  tg_ids slot_of;   /* [num_rows] the slot of a row */
  tg_ids offset_of; /* [num_rows] its offset among its slot's rows */
  tg_ids inputs;    /* [num_rows] at offsets above 0 the draft that is fed there */
  tg_ids tokens;    /* [num_slots, capacity] committed tokens, rows `tokens_stride` elements apart */
  int64_t tokens_stride;
  tg_ids total;  /* [num_slots] how many are committed */
  tg_ids prompt; /* [num_slots] how many of them are the prompt */
  tg_logits logits;
  tg_action* actions; /* [num_rows] is written instead of the logits where it is not NULL */
  int32_t num_slots;
  int32_t capacity;
} tg_slots_step;

/* A step of a host that hands over whole sequences, in any order (generate()): where each stands is found by its history. What
 * a step reads and what it leaves lie apart. */
typedef struct {
  tg_program program;    /* by value: its pointers are then among the kernel's arguments */
  const int32_t* policy; /* a tg_policy, or one for each pair, with the tokens */
  tg_ids tokens;         /* [num_rows, num_tokens], rows `tokens_stride` elements apart */
  int64_t tokens_stride;
  const tg_slot* slots; /* [num_seen] what the last step left, */
  const tg_loop* loops; /* [num_seen, 2] */
  const int32_t* seen;  /* [num_seen, capacity] and the tokens that it saw */
  tg_slot* next_slots;  /* the same for the next step, [num_rows] */
  tg_loop* next_loops;
  int32_t* next_seen;
  tg_logits logits;
  int32_t num_tokens;
  int32_t prompt; /* tokens of the prompt, -1: all those of a sequence that was not seen before */
  int32_t limit;  /* of the output, TG_NO_LIMIT: unknown */
  int32_t num_seen;
  int32_t capacity; /* at least num_tokens */
  int32_t unused;
} tg_sequences_step;

/* Edits that the host decided on (vLLM's V1 runner). */
typedef struct {
  int32_t row;
  int32_t policy; /* index in `policies` */
  tg_action action;
} tg_edit;
typedef struct {
  tg_program program;      /* by value: its pointers are then among the kernel's arguments */
  const tg_edit* edits;    /* [num_edits] */
  const int32_t* policies; /* [num_policies, policy_size] */
  int64_t policy_size;
  tg_logits logits;
  int32_t num_edits;
  int32_t num_policies;
} tg_edits_step;

/* The sequence whose first row is `row`; nothing for a row that is not the first of its slot. */
void tg_guard_slot(const tg_slots_step* step, int32_t row);

/* The sequence of one row. */
void tg_guard_sequence(const tg_sequences_step* step, int32_t row);

/* One edit. */
void tg_guard_edit(const tg_edits_step* step, int32_t edit);

#ifdef __cplusplus
}
#endif
#endif
