/* thinkguard.h: the whole contract of the C core.
 *
 * A *program* is a model's reasoning format compiled against its vocabulary: a byte automaton over the markers, lifted onto
 * token ids. A *policy* is what one request asks for. A *state* is where one sequence stands: a struct of int32 without
 * pointers, so that fork and rollback are assignment and a batch is an array. A state is a pure function of (program,
 * policy, prompt ids, output ids); nothing else is remembered anywhere. A *row* is a row of logits, and nothing else.
 *
 * Units      Lengths and offsets count elements; names ending in _bytes count bytes. Token ids are int32.
 * Layout     Tables are arrays owned by the caller and only read here. Ragged tables are CSR: the entries of i are
 *            [offset[i], offset[i + 1]), and offsets never fall. All structs hold 32-bit fields only and have no padding
 *            (the pointers of tg_program, tg_vocab, tg_patterns and tg_lift, and tg_ids, aside).
 * Ownership  Only tg_lift_new allocates, and tg_lift_free frees it. The step path (advance, decide, apply) allocates
 *            nothing, keeps no globals and logs nothing.
 * Threads    Programs and policies are immutable and may be shared. A state belongs to one thread at a time.
 * Errors     What can fail returns a tg_status, writes its outputs last, and on failure writes nothing. "Not allowed" is an
 *            answer (tg_allows), never an error. Illegal tokens do not fail: they make a state inert, or it goes on with
 *            what the text says.
 * Counters   Stop at INT32_MAX instead of overflowing.
 * Asserts    The invariants below are asserted where NDEBUG is not defined: in the debug build, under the sanitizers and in
 *            the fuzz target. A release build trusts the caller.
 */
#ifndef THINKGUARD_H
#define THINKGUARD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { TG_OK = 0, TG_NO_MEMORY = 1, TG_BAD_ARGUMENT = 2, TG_TOO_LARGE = 3 } tg_status;

/* What a marker is. A spelled form (a marker's control token written out in plain bytes) carries TG_SPELLED beside its kind.
 */
enum {
  TG_START = 1 << 0,      /* opens the thinking */
  TG_END = 1 << 1,        /* closes it */
  TG_ANSWER = 1 << 2,     /* opens the answer */
  TG_IMPLICIT = 1 << 3,   /* a tool call's opener: ends the thinking by itself */
  TG_SPELLED = 1 << 4,    /* spelled in plain bytes: never to be completed */
  TG_TOOL = 1 << 5,       /* channel formats: begins a free header ("<|channel|>commentary") */
  TG_BODY = 1 << 6,       /* channel formats: ends a header ("<|message|>"); others: is forbidden while thinking and means
                             nothing in an answer ("<|close|>argument", and of a token: begins a turn) */
  TG_HEADER = 1 << 7,     /* channel formats: begins a message ("<|start|>") */
  TG_CALL_END = 1 << 8,   /* channel formats: ends a tool call ("<|call|>") */
  TG_RECIPIENT = 1 << 9,  /* channel formats: names a tool in a free header ("to=") */
  TG_MULTI = 1 << 10,     /* of a token: completes more than one marker, so no structure has room for it */
  TG_GROWS_END = 1 << 11, /* of a token: takes a half-written text end, or tool call's opener, beyond two characters */
  TG_EXTENDS = 1 << 12,   /* of a token: all of it continues the marker that the node has half written */
  /* of a token: takes an end in plain bytes from fewer than two characters to two or more. Only ends that begin with a mark
     of punctuation or a symbol count, and none behind a quote or bracket in the same token. */
  TG_BEGINS_END = 1 << 13,
  /* of a token: leaves two characters or more of a start in plain bytes, that are none of an end or a tool call's opener */
  TG_HALF_START = 1 << 14,
  TG_HALF_END = 1 << 15 /* of a token: leaves two characters or more of an end in plain bytes */
};

/* What a token is: the low byte of tg_program.info. Above it, in bytes: bits 8..15 its length and 16..23 its leading ASCII
 * white space, both saturating at 255; bits 24..25 what it leaves missing of a UTF-8 character; bits 26..27 its continuation
 * bytes (1..3) if it holds nothing else. */
enum {
  TG_TEXT = 1 << 0,     /* has text */
  TG_VISIBLE = 1 << 1,  /* holds a byte outside ASCII white space, and is not inert */
  TG_INERT = 1 << 2,    /* dropped by skip_special_tokens or without text, and no marker's symbol */
  TG_BOUNDARY = 1 << 3, /* begins a turn or a role */
  TG_RAW = 1 << 4,      /* BOS or padding: a boundary that by itself shows no chat */
  TG_MARKUP = 1 << 5    /* holds the character that an end of TG_BEGINS_END begins with, or a backtick */
};

typedef enum { TG_BEFORE = 0, TG_THINKING = 1, TG_CLOSING = 2, TG_HEADING = 3, TG_ANSWERING = 4, TG_DONE = 5 } tg_phase;
typedef enum {
  TG_BY_NONE = 0,
  TG_BY_MODEL = 1,
  TG_BY_BUDGET = 2,
  TG_BY_BOUNDARY = 3,
  TG_BY_LOOP = 4,
  TG_BY_IMPLICIT = 5,
  TG_BY_PROMPT = 6
} tg_closed_by;
typedef enum { TG_BODY_NONE = 0, TG_BODY_FREE = 1, TG_BODY_FINAL = 2, TG_BODY_CALL = 3, TG_BODY_PREAMBLE = 4 } tg_body;
typedef enum {
  TG_OPEN_FORCE = 0,
  TG_OPEN_ALLOW = 1,
  TG_OPEN_FORBID = 2,
  TG_OPEN_AUTO = 3 /* forced where the prompt says that thinking is on (tg_open), else allowed */
} tg_opening;
typedef enum { TG_EOS_CLOSE = 0, TG_EOS_BAN = 1 } tg_on_eos;
typedef enum { TG_AT_LINE = 0, TG_AT_SENTENCE = 1 } tg_close_at;
typedef enum { TG_PER_TURN = 0, TG_PER_BLOCK = 1 } tg_budget_per;
typedef enum { TG_PREFIX_ANY = 0, TG_PREFIX_FORCED = 1 } tg_answer_prefix_on;
typedef enum { TG_MARKERS_BAN = 0, TG_MARKERS_ALLOW = 1 } tg_markers;
typedef enum { TG_FLOAT32 = 0, TG_FLOAT16 = 1, TG_BFLOAT16 = 2 } tg_dtype;

enum {
  TG_NO_LIMIT = -1,
  TG_MAX_EOS = 16,        /* ids in an EOS set */
  TG_LOOP_PERIODS = 64,   /* longest period a loop is looked for with */
  TG_BLANK_PATIENCE = 8,  /* answer tokens without a visible byte that are tolerated below the minimum */
  TG_HEADER_PATIENCE = 32 /* tokens of a free header */
};

/* Sequences of tokens that may be forced: the policy's six, and from TG_SEQ_PROGRAM on the program's. */
enum {
  TG_SEQ_NONE = 0,
  TG_SEQ_OPEN = 1,   /* start marker and its canonical white space */
  TG_SEQ_CLOSE = 2,  /* close message, canonical white space, end marker, canonical white space */
  TG_SEQ_OFF = 3,    /* the family's thinking-off text, and the answer's prefix */
  TG_SEQ_EXTEND = 4, /* the extension's message */
  TG_SEQ_BARE = 5,   /* of the close, the end marker and what is behind it */
  TG_SEQ_PREFIX = 6, /* canonical text behind the end marker and the answer's prefix */
  TG_SEQ_PROGRAM = 7
};

/* What a token does to the automaton when it completes markers; event 0 is "nothing": all of it 0 but space. Ends of other
 * pairs count among its kinds, as TG_SPELLED, and mean nothing else. */
typedef struct {
  int32_t kinds;        /* of all markers completed, | TG_MULTI if there are several */
  int32_t last;         /* kinds of the last one, which decides; a subset of `kinds`. 0: all are ends of other pairs */
  int32_t starts;       /* how many of them open the thinking, >= 0 */
  int32_t tail_bytes;   /* the token's bytes behind the last one, >= 0 */
  int32_t tail_visible; /* 0 or 1: whether those hold a visible byte */
  int32_t space;        /* canonical bytes of white space behind a start so far (0..4), -1: something else stands there */
  int32_t marker_bytes; /* of the last one, control tokens counted with their content, >= 0 */
  int32_t pair;         /* of the last start among them, 0: there is none */
} tg_event;

/* What a node of the automaton (a half-written marker; 0 is the root) means behind a start of one pair, of whose ends alone is
 * told. Lengths are in characters, a control token counting two; of the longest suffix that begins such a marker. */
typedef struct {
  int32_t start_bytes; /* bytes of a half-written start, 0: none */
  int32_t end_chars;   /* characters of a half-written end, spelled forms left out, 0: none */
  int32_t marks;       /* all kinds that the node's marks complete or lead to */
  int32_t reach;       /* kinds that a marker with a control token already written can still become, 0: no such marker */
  int32_t plan;        /* first token of ending the thinking from here (rule 11); a token of the vocabulary */
  int32_t finish;      /* finishes a half-written end of two characters or more, else such an opener; TG_SEQ_NONE: neither */
  int32_t open;        /* sequence that finishes a half-written start of two characters or more, TG_SEQ_NONE: no such */
  int32_t halves;      /* so many of its first marks speak of half-written markers alone */
} tg_node;

/* Token ids in a host's buffer: data[0], data[stride], ... of 4 or 8 bytes each. Ids that do not fit into int32 are
 * impossible ones, as are negative ids. */
typedef struct {
  const void* data;
  int64_t stride; /* elements */
  int64_t bytes;  /* of one id: 4 or 8 */
} tg_ids;

/* A compiled format: views of the caller's arrays. Where its ends belong to its starts, the nodes, their marks and the events
 * are there once for each *pair* of a start and its end: only the end of the pair that was begun last is TG_END, those of the
 * others are TG_SPELLED. Where any end closes whatever was begun there is one pair, of all of them. */
typedef struct tg_program {
  int32_t vocab_size;           /* >= 0 */
  int32_t num_nodes;            /* 1..65,535 */
  int32_t is_channel;           /* 0 or 1: the format has a message grammar */
  int32_t header_seq;           /* channel formats: from a message's end to the channel name, never empty; 0 elsewhere */
  int32_t channel_seq;          /* channel formats: from the role to the channel name, empty where they touch; 0 elsewhere */
  int32_t body_token;           /* channel formats: ends a header, -1 elsewhere */
  int32_t message_end;          /* channel formats: ends a preamble, -1 elsewhere */
  int32_t header_tokens;        /* channel formats: most tokens from a message's end to an answer's body, 0 elsewhere */
  int32_t space_word;           /* canonical white space behind a start, its bytes packed big-endian */
  int32_t space_bytes;          /* of it, 0..4 */
  int32_t newline;              /* the token that is a line break, -1: none that can be sampled */
  int32_t num_pairs;            /* >= 1; num_pairs * num_nodes fits into int32 */
  const uint32_t* step;         /* [vocab_size] from the root: next node (< num_nodes) | event << 16 */
  const uint32_t* info;         /* [vocab_size] */
  const uint32_t* tail;         /* [vocab_size] the last 4 bytes, big-endian; fewer bytes: zeros in front */
  const int32_t* except_offset; /* [num_nodes + 1] of the tokens that a node leads elsewhere than the root does */
  const int32_t* except_token;  /* ascending for each node */
  const uint32_t* except_step;  /* as `step` */
  const int32_t*
      mark_offset;           /* [num_pairs * num_nodes + 1] of the tokens that complete, enter or extend a marker, or begin a
                                     turn (TG_BODY) */
  const int32_t* mark_token; /* ascending for each node */
  const uint32_t* mark_mask; /* kinds | reach of the next node << 16; of kinds, TG_GROWS_END stands for TG_IMPLICIT where
                                     the token only completes an opener that was begun before it, and a start or end in plain
                                     bytes that lacks but its last character behind the token counts as completed */
  const tg_event* events;    /* [num_events, num_pairs] */
  const tg_node* nodes;      /* [num_pairs, num_nodes] */
  const int32_t* never;      /* tokens that are always banned (rule 3); like the lists below ascending */
  const int32_t* inert;      /* TG_INERT tokens below vocab_size */
  const int32_t* blank;      /* tokens without a visible byte, inert ones included */
  const int32_t* partial[3]; /* tokens that leave at least 1, 2, 3 bytes of a character missing, whatever came before */
  const int32_t* continuing[2]; /* tokens of exactly 1, 2 continuation bytes and nothing else */
  int32_t num_never, num_inert, num_blank, num_partial[3], num_continuing[2];
  const int32_t* seq_offset; /* [num_sequences + 1] of the program's sequences, the first is TG_SEQ_PROGRAM */
  const int32_t* seq_token;
  /* How prompts show turns. */
  const struct tg_program* turns; /* lift over boundaries that are text or headers (TG_HEADER: a boundary, TG_START: an
                                     assistant header), NULL where TG_BOUNDARY tokens are all there is */
  const struct tg_program* shown; /* lift over the texts of a prompt that say that thinking is on, NULL: none is known */
  int32_t num_name_nodes;     /* of the header's own text at the start of a turn: nodes of a walk over its tokens from 0 to
                                     the last one, behind all of it; 0 without one */
  const int32_t* name_offset; /* [num_name_nodes + 1] */
  const int32_t* name_token;  /* ascending for each node */
  const int32_t* name_next;   /* where it leads */
} tg_program;

/* A request's policy: this struct, and in the same block of memory the tokens of its sequences, messages spelled. For a
 * program of several pairs there is one for each, one behind the other, and their tokens behind the last; they differ in
 * TG_SEQ_CLOSE and TG_SEQ_BARE alone, and functions take the first. The fields have the names that they have in ThinkPolicy
 * (policy.py). */
typedef struct {
  int32_t max_thinking_tokens;   /* >= 0, TG_NO_LIMIT: none */
  int32_t budget_per;            /* tg_budget_per: what max_ and soft_thinking_tokens count */
  int32_t min_thinking_tokens;   /* >= 0, at most max_thinking_tokens */
  int32_t grace_tokens;          /* >= 0, at most max_thinking_tokens; 0 without one */
  int32_t close_at;              /* tg_close_at */
  int32_t soft_thinking_tokens;  /* below max_thinking_tokens, which is set then; TG_NO_LIMIT: no bias */
  int32_t max_extensions;        /* >= 0; 0 where sequence TG_SEQ_EXTEND is empty */
  int32_t on_eos;                /* tg_on_eos */
  int32_t opening;               /* tg_opening */
  int32_t max_think_blocks;      /* >= 1 */
  int32_t min_answer_tokens;     /* visible tokens, >= 0 */
  int32_t max_answer_tokens;     /* >= min_answer_tokens and >= 1, TG_NO_LIMIT: none */
  int32_t reserve_answer_tokens; /* >= 0 */
  int32_t loop_tokens;           /* 0: off, else 4 .. 4 * TG_LOOP_PERIODS */
  int32_t markers_in_answer;     /* tg_markers */
  int32_t answer_prefix_on;      /* tg_answer_prefix_on: the closes behind which TG_SEQ_PREFIX is forced */
  int32_t longest_close;         /* tokens of the longest sequence that may end the thinking, whatever the pair, a prefix
                                    included, >= 0 */
  int32_t num_eos;               /* 0..TG_MAX_EOS */
  int32_t eos[TG_MAX_EOS];       /* the first num_eos; eos[0] is the one that is forced */
  float close_bias;              /* logits, >= 0 */
  int32_t closes_line;           /* 0 or 1: the close begins with a line break, which is left out behind another one */
  int32_t lead_word;             /* line breaks in front of the extension's message, packed big-endian */
  int32_t lead_bytes;            /* of them, 0..4 */
  int32_t lead[4];               /* [k]: the token that goes on where the text ends in the first k of them */
  int32_t prefix_space;          /* tokens of canonical white space that TG_SEQ_PREFIX begins with, >= 0 */
  int32_t seq_offset[8];         /* sequence s (1..6) has tokens seq_offset[s] .. seq_offset[s + 1] - 1; never falls */
  int32_t tokens;                /* where the tokens lie, in int32 from the beginning of this struct */
} tg_policy;

/* tg_state.flags */
enum {
  TG_STATE_INERT = 1 << 0,     /* an impossible id was seen: nothing is enforced any more */
  TG_STATE_LOOP = 1 << 1,      /* the block's last loop_tokens tokens repeat */
  TG_STATE_RECIPIENT = 1 << 2, /* the header names a tool */
  TG_STATE_VIOLATION = 1 << 3, /* the last token was an illegal marker or EOS */
  TG_STATE_FORCED = 1 << 4,    /* the last token was the forced one */
  TG_STATE_OPENS = 1 << 5,     /* TG_OPEN_AUTO, and the prompt says that thinking is on */
  TG_STATE_NO_CHAT = 1 << 6,   /* beside TG_STATE_INERT: left alone, for the prompt shows no chat */
  /* Of the text since the last marker that began a block or the answer, the token that completed it left out: */
  TG_STATE_MARKUP = 1 << 7,    /* a tool call's opener or TG_MARKUP; one character of an end counts with the next token */
  TG_STATE_PARAGRAPH = 1 << 8, /* in the answer: visible text, an empty line, visible text again */
  TG_STATE_SPOKEN = 1 << 9,    /* in a block: a visible token that left no start half written */
  TG_STATE_BARE = 1 << 10 /* in a block: a token of its close was not sampled, which closes without its optional parts */
};

/* Where one sequence stands. All counters are >= 0. */
typedef struct {
  int32_t phase;         /* tg_phase */
  int32_t node;          /* of the automaton, 0 .. num_nodes - 1 */
  int32_t tail;          /* the text's last 4 bytes, big-endian */
  int32_t seq;           /* the sequence being forced, TG_SEQ_NONE: none */
  int32_t pos;           /* its next element, below its length; 0 without one */
  int32_t flags;         /* TG_STATE_* */
  int32_t thinking;      /* tokens of thinking in this turn (rule 7) */
  int32_t block;         /* of them, in this block */
  int32_t blocks;        /* begun in this turn */
  int32_t visible;       /* visible tokens of the answer (rule 9) */
  int32_t answer;        /* tokens of the answer that were not forced */
  int32_t blank;         /* tokens since the last visible one */
  int32_t extensions;    /* used */
  int32_t space;         /* canonical bytes of white space behind the start so far (0..4), -1: over */
  int32_t closed_by;     /* tg_closed_by */
  int32_t length;        /* tokens of output */
  int32_t header_tokens; /* of a free header so far */
  int32_t is_headed;     /* 0 or 1, between messages: the forced header is written */
  int32_t body;          /* tg_body: of a channel format's message */
  int32_t limit;         /* max_tokens of the output, TG_NO_LIMIT: unknown */
  int32_t pair;          /* of the last start, below num_pairs; 0 before any */
} tg_state;

/* Side block of a state whose policy looks for loops. Zeroed when a block starts. */
typedef struct {
  uint32_t count;                /* tokens seen in this block, modulo 2^32: a multiple of TG_LOOP_PERIODS */
  int32_t ring[TG_LOOP_PERIODS]; /* the last ones, by count modulo TG_LOOP_PERIODS */
  int32_t run[TG_LOOP_PERIODS];  /* run[p - 1]: how many of the last tokens equal the one p before them */
} tg_loop;

typedef enum { TG_FREE = 0, TG_FORCE = 1, TG_EDIT = 2, TG_ALLOW = 3 } tg_action_kind;
/* tg_action.flags, of TG_EDIT */
enum {
  TG_BAN_EOS = 1 << 0,
  TG_BAN_INERT = 1 << 1,     /* EOS excepted */
  TG_BAN_BLANK = 1 << 2,     /* EOS excepted */
  TG_MOVE_EOS = 1 << 3,      /* redirect EOS to target */
  TG_ONLY_CALL_END = 1 << 4, /* of the EOS set only the call's end is legal */
  TG_NOT_CALL_END = 1 << 5,  /* of the EOS set the call's end is not */
  TG_BAN_NEVER = 1 << 6,
  TG_FORCE_AIM = 1 << 7 /* TG_FORCE: where the token cannot be sampled, the aim is forced if the edit lets it through */
};

/* What the next step of a sequence needs. The fields of TG_EDIT are filled in for TG_FORCE and TG_ALLOW too, `aim` in place of
 * `token`: where nothing that they let through can be sampled, the row is edited so that nothing illegal is. */
typedef struct {
  int32_t kind;      /* tg_action_kind */
  int32_t token;     /* TG_FORCE: the token; TG_EDIT: the target of redirects and bias, -1: none */
  int32_t aim;       /* TG_FORCE: the target of the edit in its place, -1: none */
  int32_t node;      /* TG_EDIT, TG_ALLOW: whose marks are looked through, pair * num_nodes + node of the state */
  int32_t forbidden; /* TG_EDIT: kinds that must not be completed */
  int32_t moved;     /* TG_EDIT: kinds whose tokens are redirected to the target, and banned */
  int32_t allowed;   /* TG_ALLOW: kinds that may be reached; a token that leads to none of them is banned */
  int32_t flags;     /* TG_EDIT: TG_BAN_* and the others above */
  int32_t cut;       /* TG_EDIT: a token may leave fewer than `cut` (1..3) bytes of a character missing, 0: any number */
  int32_t pending;   /* TG_EDIT with cut: bytes of a character missing so far, 0..3 */
  float bias;        /* TG_EDIT: logits added to the target, >= 0 */
} tg_action;

/* --- compile: lift.c --- */

/* The vocabulary: token t spells text[offsets[t] .. offsets[t + 1]), or is one control symbol if control[t] >= 0. */
typedef struct {
  int32_t num_tokens;
  const uint8_t* text;
  const int64_t* offsets;
  const int32_t* control; /* symbol 256 + control[t], -1: its bytes */
} tg_vocab;

/* Markers as strings of symbols (0..255 bytes, 256.. control tokens). */
typedef struct {
  int32_t num_patterns;
  int32_t num_controls;
  const int32_t* symbols;
  const int32_t* offsets; /* [num_patterns + 1] */
  const int32_t* kinds;
  const int32_t* pairs;           /* [num_patterns] of a start and of an end, below num_pairs, 0 for others */
  const int32_t* control_bytes;   /* [num_controls] length of each control token's content */
  const int32_t* control_dropped; /* [num_controls] whether skip_special_tokens drops it */
  const uint8_t* space;           /* canonical white space behind a start */
  int32_t space_bytes;
  int32_t num_pairs; /* >= 1 */
} tg_patterns;

/* A lifted automaton; its arrays are as described in tg_program and live until tg_lift_free. */
typedef struct {
  int32_t num_nodes, num_events, num_except, num_marks, num_symbols;
  uint32_t *step, *info, *tail;
  int32_t *except_offset, *except_token;
  uint32_t* except_step;
  int32_t *mark_offset, *mark_token;
  uint32_t* mark_mask;
  tg_event* events;
  tg_node* nodes;       /* plan, finish and open are left 0: the caller spells them */
  int32_t* delta;       /* [num_nodes, num_symbols] the automaton itself: next node | pattern completed + 1 << 16 */
  int32_t* depth;       /* [num_nodes] symbols from the root */
  int32_t* end_depth;   /* [num_pairs, num_nodes] symbols of the half-written end, spelled forms left out, and */
  int32_t* end_of;      /* [num_pairs, num_nodes] its pattern, -1: none */
  int32_t* start_of;    /* [num_nodes] pattern of the half-written start, spelled forms left out, -1: none */
  int32_t* start_depth; /* [num_nodes] its symbols */
  int32_t* call_of;     /* [num_nodes] pattern of the half-written tool call's opener, -1: none, */
  int32_t* call_depth;  /* [num_nodes] its symbols, and */
  int32_t* call_chars;  /* [num_nodes] characters, a control token counting two */
} tg_lift;

/* Build the automaton over `patterns` and lift it onto `vocab`. Time: one walk over all bytes of the vocabulary, and for
 * each node one over the tokens whose first symbol leads elsewhere than from the root. TG_TOO_LARGE: more than 65,535 nodes
 * or events. No pattern may be empty. */
tg_status tg_lift_new(const tg_vocab* vocab, const tg_patterns* patterns, tg_lift** lift);
void tg_lift_free(tg_lift* lift);

/* --- the machine: machine.c; none of it can fail --- */

/* Where `token` leads from `node`: next node | event << 16. Ids outside the vocabulary leave the node as it is. Costs a
 * binary search among the node's exceptions; at the root one read. */
uint32_t tg_step(const tg_program* program, int32_t node, int32_t token);

/* All kinds of marker that a sequence of tokens would complete behind a start of a pair, begun from any node. Costs
 * num_nodes * num_tokens steps: for what is bound once. */
int32_t tg_kinds_on_the_way(const tg_program* program, int32_t pair, const int32_t* tokens, int64_t num_tokens);

/* Index where the assistant's own turn starts in a prompt: behind the last boundary and the header's own text, 0 without any;
 * *raw is set to 1 if no boundary but BOS and padding was found, else to 0. BOS or padding counts as others do where the
 * header's own text follows it and something else stands before it. Where boundaries are tokens it scans back from the end, so
 * its cost is the turn's length. With `lead` > 0 the ids are the end of a longer prompt: where boundaries are text or headers
 * the walk goes forward, and the first `lead` ids with text only bring the automaton into step; they are at least as many as
 * the longest pattern has symbols. -1 then, and nothing in *raw: where the turn starts is not known from these ids. */
int64_t tg_turn_start(const tg_program* program, const tg_ids* ids, int64_t num_tokens, int64_t lead, int32_t* raw);

/* Start a state: walk the assistant's own part of the prompt, turn_ids[num_tokens]; negative ids are skipped. `loop` may be
 * NULL if the policy looks for no loops. With `raw` only a marker at the very end counts. Both are written whole.
 * Under TG_OPEN_AUTO tg_open has to follow. */
void tg_start(const tg_program* program, const tg_policy* policy, const tg_ids* turn_ids, int64_t num_tokens, int32_t raw,
              int32_t limit, tg_state* state, tg_loop* loop);

/* Complete the start of a state under TG_OPEN_AUTO: if its turn has not begun to think or to answer, and the prompt holds a
 * text of `program->shown`, the opening is forced. The whole prompt is read then, prompt_ids[num_tokens] from its beginning
 * to the first such text; else, and under every other policy, nothing is. */
void tg_open(const tg_program* program, const tg_policy* policy, const tg_ids* prompt_ids, int64_t num_tokens,
             tg_state* state);

/* Account for one sampled token. An impossible id (negative) makes the state inert. Constant cost, but for the binary
 * searches of tg_step and loop_tokens / 4 comparisons where loops are looked for. */
void tg_advance(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, int32_t token);

/* Account for several tokens. */
void tg_scan(const tg_program* program, const tg_policy* policy, tg_state* state, tg_loop* loop, const tg_ids* ids,
             int64_t num_tokens);

/* Say what the next step needs. Constant cost, but for the marks of one node between two messages of a channel format. */
void tg_decide(const tg_program* program, const tg_policy* policy, const tg_state* state, tg_action* action);

/* Tokens that a close, an answer of the reserved length and EOS take: thinking has to stop while they still fit. */
int32_t tg_close_room(const tg_program* program, const tg_policy* policy);

/* The EOS that ends an answer: the first of the set that is no tool call's end, else the first; -1: the set is empty. */
int32_t tg_answer_eos(const tg_program* program, const tg_policy* policy);

/* --- logits: edit.c --- */

/* Whether an action lets `token` be sampled, redirected sources counting as banned: the predicate of what tg_apply writes.
 * Negative ids are never allowed. */
int32_t tg_allows(const tg_program* program, const tg_policy* policy, const tg_action* action, int32_t token);

/* Ask for the memory that tg_apply, called with the same arguments a little later, reads and writes, so that the rows of a
 * batch do not wait for it one after the other: decide all, prefetch all, apply all. Only TG_EDIT gains; the others write
 * rows from end to end. Changes nothing. */
void tg_prefetch(const tg_program* program, const tg_policy* policy, const tg_action* action, const void* logits,
                 tg_dtype dtype, int64_t stride, int32_t width);

/* Carry out an action on the row of logits[0], logits[stride], ..., logits[(width - 1) * stride]; the stride may be
 * negative, not 0. Ids from the program's vocabulary up to width are tokens without text. Nothing is raised from -inf, NaN
 * reads as -inf, and a row that would be left with nothing finite stays as it was. Returns 1 if it was carried out or
 * nothing was to do; 0 if the row was left alone, or if what TG_FORCE or TG_ALLOW let through could not be sampled, and the
 * edit in its place was made. TG_FREE touches nothing, TG_EDIT single logits, TG_FORCE and TG_ALLOW
 * write the whole row. */
int32_t tg_apply(const tg_program* program, const tg_policy* policy, const tg_action* action, void* logits, tg_dtype dtype,
                 int64_t stride, int32_t width);

#ifdef __cplusplus
}
#endif
#endif
