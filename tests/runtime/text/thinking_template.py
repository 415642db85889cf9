"""A Jinja template as the Thinking checkpoint's is described: its known part, and turns by other sources."""

THINKING_JINJA = """{%- if chat_template_kwargs is defined and chat_template_kwargs.options is defined -%}
{%- set options = chat_template_kwargs.options -%}
{%- elif options is not defined -%}
{%- set options = {'thinking_mode': true} -%}
{%- endif -%}
{%- set thinks = options.thinking_mode in ['open', 'true', true] -%}
{%- set image_count = namespace(value=0) -%}
{%- set video_count = namespace(value=0) -%}
{%- macro render_content(content, accumulate, role) -%}
{%- if content is string -%}
{{- content -}}
{%- else -%}
{%- for item in content -%}
{%- if item.type == 'text' -%}
{{- item.text -}}
{%- elif item.type == 'image_url' -%}
{%- if accumulate -%}
{%- set image_count.value = image_count.value + 1 -%}
{{- ' Picture ' ~ image_count.value ~ ':' -}}
{%- endif -%}
{{- '<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>' -}}
{%- elif item.type == 'video_url' -%}
{%- if accumulate -%}
{%- set video_count.value = video_count.value + 1 -%}
{{- ' Video ' ~ video_count.value ~ ':' -}}
{%- endif -%}
{{- '<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>' -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- cls_token -}}
{%- if tools -%}
{{- '\\n<tool_list>\\n' + tools | tojson + '\\n</tool_list>\\n' -}}
{%- endif -%}
{%- if messages[0].role == 'system' -%}
{%- set system = render_content(messages[0].content, false, 'system') -%}
{%- set rest = messages[1:] -%}
{%- else -%}
{%- set system -%}
You are a multimodal AI assistant called ERNIE developed by Baidu based on the PaddlePaddle framework.
{%- endset -%}
{%- set rest = messages -%}
{%- endif -%}
{%- if system -%}{{- system + '\\n' -}}{%- endif -%}
{%- for message in rest -%}
{%- if message.role == 'system' -%}
{{- render_content(message.content, false, 'system') + '\\n' -}}
{%- elif message.role == 'user' -%}
{{- 'User: ' + render_content(message.content, true, 'user') -}}
{%- elif message.role == 'tool' -%}
{{- 'User: \\n<tool_output>\\n' + render_content(message.content, true, 'tool') + '\\n</tool_output>\\n' -}}
{%- else -%}
{%- generation -%}
{{- '\\nAssistant: \\n<think>\\n' + (message.reasoning_content or '') + '\\n</think>\\n\\n' -}}
{{- message.content.lstrip('\\n') -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>\\n' -}}
{%- endfor -%}
{{- sep_token -}}
{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '\\nAssistant: \\n<think>\\n' -}}
{%- if not thinks -%}{{- '\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}"""
