use super::*;
use serde_json::json;

const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn now() -> Zoned {
    "2026-11-24T09:05:00+00:00[UTC]".parse().unwrap()
}

fn render(source: &str, prompt: &Prompt<'_>) -> Result<String, TemplateError> {
    ChatTemplate::new(source.into(), "<s>".into(), "</s>".into()).unwrap().render(prompt, &now())
}

fn user(text: &str) -> Vec<Message> {
    vec![Message::text("user", text)]
}

#[test]
fn messages_become_the_models_own_form() {
    let messages = user("Hi <b> & \"you\"");
    let prompt = Prompt { messages: &messages, add_generation_prompt: true, ..Prompt::default() };
    let text = render(CHATML, &prompt).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi <b> & \"you\"<|im_end|>\n<|im_start|>assistant\n"
    );
    let prompt = Prompt { add_generation_prompt: false, ..prompt };
    assert!(render(CHATML, &prompt).unwrap().ends_with("<|im_end|>\n"));
}

#[test]
fn parts_are_joined_and_methods_are_pythons() {
    let parts = ["one", "two"].map(|t| json!({"type": "text", "text": t}).as_object().unwrap().clone());
    let messages =
        vec![Message { content: Some(Content::Parts(parts.to_vec())), ..Message::text("user", "") }];
    let source = "{{ bos_token }}{% for m in messages %}\n    {% if m.content.startswith('one') %}\n{{ m['content'].strip().split('\\n')[-1] | trim }}{{ eos_token }}\n    {% endif %}\n{% endfor %}{{ strftime_now('%d %b %Y') }}";
    let prompt = Prompt { messages: &messages, ..Prompt::default() };
    assert_eq!(render(source, &prompt).unwrap(), "<s>two</s>\n24 Nov 2026", "blocks leave no lines behind");
}

#[test]
fn json_is_pythons_and_extra_variables_are_there() {
    let tool = [json!({"type": "function", "function": {"name": "f", "description": "<é>"}})];
    let mut extra = Map::new();
    extra.insert("thinking".into(), json!(false));
    let prompt = Prompt { messages: &user("x"), tools: Some(&tool), extra, ..Prompt::default() };
    let source = "{% if tools %}{{ tools[0] | tojson }}{% endif %} {{ thinking }} {{ tools[0].function | tojson(indent=1) }}";
    assert_eq!(
        render(source, &prompt).unwrap(),
        "{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"<é>\"}} False {\n \"name\": \"f\",\n \"description\": \"<é>\"\n}"
    );
}

#[test]
fn earlier_calls_have_their_arguments_as_objects() {
    let calls =
        json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
    let mut assistant = Message::text("assistant", "");
    assistant.tool_calls = Some(serde_json::from_value(calls).unwrap());
    let messages = vec![assistant];
    let prompt = Prompt { messages: &messages, ..Prompt::default() };
    let source = "{{ messages[0].tool_calls[0].function.arguments.a + 1 }}";
    assert_eq!(render(source, &prompt).unwrap(), "2");
}

#[test]
fn a_template_without_tools_gets_them_in_the_system_message() {
    let tool = [json!({"type": "function", "function": {"name": "f"}})];
    let mut assistant = Message::text("assistant", "");
    let calls =
        json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
    assistant.tool_calls = Some(serde_json::from_value(calls).unwrap());
    let messages = vec![
        Message::text("system", "Be brief."),
        Message::text("user", "Go"),
        assistant,
        Message::text("tool", "42"),
    ];
    let prompt =
        Prompt { messages: &messages, tools: Some(&tool), add_generation_prompt: true, ..Prompt::default() };
    insta::assert_snapshot!("hermes_tools", render(CHATML, &prompt).unwrap());
    let alone = user("Go");
    let prompt = Prompt { messages: &alone, ..prompt };
    assert!(
        render(CHATML, &prompt)
            .unwrap()
            .starts_with("<|im_start|>system\nYou are a function calling AI model.")
    );
}

#[test]
fn failures_are_in_words() {
    let messages = user("Hi");
    let prompt = Prompt { messages: &messages, ..Prompt::default() };
    let error = |source: &str| render(source, &prompt).unwrap_err().to_string();
    insta::assert_snapshot!(error("{{ raise_exception('Roles must alternate') }}"), @"the model's chat template refuses these messages: Roles must alternate");
    assert!(
        error("{{ messages[0].nope.deeper }}")
            .starts_with("the model's chat template fails on these messages: ")
    );
    let broken = ChatTemplate::new("{% if %}".into(), String::new(), String::new()).unwrap_err().to_string();
    assert!(broken.starts_with("the model's chat template cannot be parsed: "), "{broken}");
}

#[test]
fn a_template_without_an_end_is_ended() {
    let messages = user("hello");
    let prompt = Prompt { messages: &messages, ..Prompt::default() };
    for hostile in [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for a in range(99999) %}{{ f(n + 1) }}{% endfor %}{% endmacro %}{{ f(0) }}",
        "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=messages) %}{% for a in range(25) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x | tojson }}",
        "{% set n = namespace(x=messages) %}{% for a in range(25) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    ] {
        let begun = std::time::Instant::now();
        let error = render(hostile, &prompt).unwrap_err();
        // A call that calls itself is ended by the depth of its calls, if that comes first.
        assert!(matches!(error, TemplateError::Endless | TemplateError::Failed(_)), "{error}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{hostile}: {:?}", begun.elapsed());
    }
    let error =
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", &prompt);
    insta::assert_snapshot!(error.unwrap_err().to_string(), @"the model's chat template does not come to an end on these messages: it was stopped after 20000000 steps; send fewer, or have the model's template mended");
    // Work that ends stays below the limit, however much there is of it within a request's size.
    let many: Vec<Message> = (0..50_000).map(|_| Message::text("user", "hello there")).collect();
    let prompt = Prompt { messages: &many, add_generation_prompt: true, ..Prompt::default() };
    assert!(render(CHATML, &prompt).is_ok());
    let long = user(&"word ".repeat(6_000_000));
    assert!(
        render("{{ messages[0]['content'] | trim }}", &Prompt { messages: &long, ..Prompt::default() })
            .is_ok()
    );
}
