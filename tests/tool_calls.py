"""A real tool call of each way to write one: `look(city="Paris")`, as vLLM's tool parser of that name reads it."""

from __future__ import annotations

NAME, ARGUMENTS = "look", {"city": "Paris"}
_JSON = '{"name": "look", "arguments": {"city": "Paris"}}'
_ARGUMENTS = '{"city": "Paris"}'
_XML = "<function=look>\n<parameter=city>\nParis\n</parameter>\n</function>"
_KEYS = "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>"
_CALLS = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
_NS = "]<]minimax[>["
_ACTION = (
    '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "look", "parameters": {"city": "Paris"}}\n]<|END_ACTION|>'
)


def _dsml(wrapper: str, space: str = "") -> str:
    inner = (
        f'<｜DSML｜{space}invoke name="look">\n<｜DSML｜{space}parameter name="city" string="true">Paris'
        f"</｜DSML｜{space}parameter>\n</｜DSML｜{space}invoke>"
    )
    return f"<｜DSML｜{space}{wrapper}>\n{inner}\n</｜DSML｜{space}{wrapper}>"


CALLS = {
    "hermes": f"<tool_call>\n{_JSON}\n</tool_call>",
    "qwen3_coder": f"<tool_call>\n{_XML}\n</tool_call>",
    "step3p5": f"<tool_call>\n{_XML}\n</tool_call>",
    "mimo": "<tool_call>\n<function=look>\n<parameter=city>Paris</parameter>\n</function>\n</tool_call>",
    "seed_oss": f"<seed:tool_call>\n{_XML}\n</seed:tool_call>",
    "deepseek_v3": f"{_CALLS}function<｜tool▁sep｜>look\n```json\n{_ARGUMENTS}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": f"{_CALLS}look<｜tool▁sep｜>{_ARGUMENTS}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "deepseek_v41": _dsml("calls", " "),
    "mistral": f"[TOOL_CALLS]look[ARGS]{_ARGUMENTS}",
    "gemma4": '<|tool_call>call:look{city:<|"|>Paris<|"|>}<tool_call|>',
    "glm45": f"<tool_call>look\n{_KEYS}\n</tool_call>",
    "glm47": "<tool_call>look<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
    "ling3": f"<tool_call>look\n{_KEYS}\n</tool_call>",
    "poolside_v1": f"<tool_call>look\n{_KEYS}\n</tool_call>",
    "kimi_k2": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>"
        f"{_ARGUMENTS}<|tool_call_end|><|tool_calls_section_end|>"
    ),
    "kimi_k3": (
        '<|open|>tools<|sep|><|open|>call tool="look" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>Paris'
        "<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>"
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="look">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
        "</minimax:tool_call>"
    ),
    "minimax_m3": (
        f'{_NS}<tool_call>\n{_NS}<invoke name="look">\n{_NS}<city>Paris{_NS}</city>\n{_NS}</invoke>\n{_NS}</tool_call>'
    ),
    "hunyuan_a13b": f"<tool_calls>[{_JSON}]</tool_calls>",
    "hy_v3": f"<tool_calls>\n<tool_call>look<tool_sep>\n{_KEYS}\n</tool_call>\n</tool_calls>",
    "hy_v4": (
        "<tool_calls>\n<tool_call>look<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>\n</tool_calls>"
    ),
    "ernie45": f"<tool_call>\n{_JSON}\n</tool_call>",
    "granite": f"<|tool_call|>[{_JSON}]",
    "cohere_command3": _ACTION,
    "cohere_command4": _ACTION,
    "olmo3": '<function_calls>\nlook(city="Paris")\n</function_calls>',
    "apertus": '<|tools_prefix|>[{"look": {"city": "Paris"}}]<|tools_suffix|>',
    "step3": (
        '<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="look">'
        '<steptml:parameter name="city">Paris</steptml:parameter></steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>'
    ),
    "internlm": '<|action_start|><|plugin|>\n{"name": "look", "parameters": {"city": "Paris"}}<|action_end|>',
    "longcat": f"<longcat_tool_call>\n{_JSON}\n</longcat_tool_call>",
    "jamba": f"<tool_calls>[\n{_JSON}\n]</tool_calls>",
    "lfm2": '<|tool_call_start|>[look(city="Paris")]<|tool_call_end|>',
    "minicpm5": '<function name="look"><param name="city">Paris</param></function>',
    "plamo3": (
        "<|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>look"
        "<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>"
        f"{_ARGUMENTS}<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|><|plamo:end_tool_requests:plamo|>"
    ),
    "k2_horizon": (
        "<ifm|tool_calls><ifm|tool_call>look<ifm|arg_key>city</ifm|arg_key><ifm|arg_value>Paris</ifm|arg_value>"
        "</ifm|tool_call></ifm|tool_calls>"
    ),
    "dots": (
        '<dots_function_call>\n<invoke name="look">\n<parameter name="city">Paris</parameter>\n</invoke>\n'
        "</dots_function_call>"
    ),
    "gigachat3": f"<|function_call|>{_JSON}",
}

# What families write for whom vLLM has no tool parser
OTHERS = {
    "deepseek_r1_distill": CALLS["deepseek_v3"],
    "minimax_m1": f"<tool_calls>\n{_JSON}\n</tool_calls>",
    "nemotron_llama": f"<TOOLCALL>[{_JSON}]</TOOLCALL>",
    "nemotron_v1_5": f"<TOOLCALL>[{_JSON}]</TOOLCALL>",
    "nemotron_nano_v2": f"<TOOLCALL>[{_JSON}]</TOOLCALL>",
    "apriel_1_5": f"<tool_calls>[{_JSON}]</tool_calls>",
    "apriel_1_6": f"<tool_calls>[{_JSON}]</tool_calls>",
}
