use super::ToolFormat::{Hermes, Llama3, Mistral};
use super::*;
use proptest::prelude::*;

/// The pieces of one kind that follow one another as one, however they were cut.
fn joined(outputs: Vec<ToolOutput>) -> Vec<ToolOutput> {
    outputs.into_iter().fold(Vec::new(), |mut whole, output| {
        match (whole.last_mut(), output) {
            (Some(ToolOutput::Text(before)), ToolOutput::Text(more))
            | (Some(ToolOutput::Arguments(before)), ToolOutput::Arguments(more)) => before.push_str(&more),
            (_, output) => whole.push(output),
        }
        whole
    })
}

fn run(format: ToolFormat, pieces: &[&str]) -> Vec<ToolOutput> {
    let mut parser = ToolParser::new(format);
    let mut out: Vec<ToolOutput> = pieces.iter().flat_map(|p| parser.push(p)).collect();
    out.extend(parser.flush());
    joined(out)
}

fn call(name: &str, arguments: &str) -> [ToolOutput; 2] {
    [ToolOutput::Begin(name.into()), ToolOutput::Arguments(arguments.into())]
}

fn text(text: &str) -> ToolOutput {
    ToolOutput::Text(text.into())
}

#[test]
fn calls_and_the_text_around_them() {
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let f = call("f", "{\"a\": 1}");
    assert_eq!(run(Hermes, &[one]), f, "the arguments are the model's bytes");
    let mut two = vec![text("I look.")];
    two.extend([f.clone(), f.clone()].concat());
    assert_eq!(run(Hermes, &["I look.\n", one, "\n", one, "\n"]), two);
    let said = run(Hermes, &[one, "\nDone."]);
    assert_eq!(said, [f.to_vec(), vec![text("\nDone.")]].concat());
    assert_eq!(run(Hermes, &["<tool_call>{\"name\": \"f\"}"]), call("f", "{}"), "not closed, but whole");
    let quoted = "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>";
    assert_eq!(run(Hermes, &[quoted]), f, "a text that holds JSON");
    let turned = "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>";
    assert_eq!(run(Hermes, &[turned]), f, "in the other order");
    let more = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"id\": \"}\"}</tool_call>.";
    assert_eq!(run(Hermes, &[more]), [f.to_vec(), vec![text(".")]].concat());
    assert_eq!(
        run(Hermes, &["a < b <tool"]),
        [text("a < b <tool")],
        "a beginning that comes to nothing is text"
    );
    assert_eq!(
        run(Hermes, &["<tool_call>{\"name\": \"f\", \"arguments\": {\"a\""]),
        call("f", "{\"a\""),
        "cut by a limit"
    );
}

#[test]
fn what_is_no_call_stays_text() {
    for broken in ["<tool_call>{\"name\": </tool_call>", "<tool_call>[1]", "<tool_call>\n", "x <tool_call> y"]
    {
        let all = format!("Hm. {broken}");
        assert_eq!(run(Hermes, &[&all]), [text(&all)]);
    }
    for json in ["{\"answer\": 5}", "{\"answer\": [{}", "{", " {\"name\": 7} "] {
        assert_eq!(run(Llama3, &[json]), [text(json)]);
    }
    for other in ["[TOOL_CALLS] no", "[TOOL_CALLS][7]", "[TOOL_CALLS]", "[TOOL_CALLS]f("] {
        assert_eq!(run(Mistral, &[other]), [text(other)]);
    }
    assert_eq!(run(Mistral, &["[1, 2]"]), [text("[1, 2]")]);
}

#[test]
fn the_other_forms() {
    let one = "{\"name\": \"f\", \"parameters\": {\"a\": \"}\"}}";
    let f = call("f", "{\"a\": \"}\"}");
    assert_eq!(run(Llama3, &[one]), f);
    assert_eq!(run(Llama3, &["<|python_tag|>", one]), f);
    assert_eq!(run(Llama3, &["\n", one, "; ", one]), [f.clone(), f.clone()].concat());
    assert_eq!(run(Llama3, &["I call <|python_tag|>", one]), [&[text("I call")][..], &f].concat());
    assert_eq!(
        run(Llama3, &["no {\"name\": \"f\"}"]),
        [text("no {\"name\": \"f\"}")],
        "only at the beginning"
    );
    let array = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": \"}\"}}, {\"name\": \"g\", \"arguments\": {}}]";
    assert_eq!(run(Mistral, &[array]), [f.clone(), call("g", "{}")].concat());
    let named = "[TOOL_CALLS]f{\"a\": \"}\"}[TOOL_CALLS]g[ARGS]{}";
    assert_eq!(run(Mistral, &["Hm.", named]), [&[text("Hm.")][..], &f, &call("g", "{}")].concat());
}

#[test]
fn text_and_arguments_stream() {
    let mut parser = ToolParser::new(Hermes);
    assert_eq!(parser.push("Hello"), [text("Hello")]);
    assert_eq!(parser.push(" <tool"), []);
    assert_eq!(parser.push("box>"), [text(" <toolbox>")]);
    assert_eq!(parser.push("<tool_call>{\"name\": \"f\", \"argum"), [], "held back until it is a call");
    assert_eq!(parser.push("ents\": {\"a"), call("f", "{\"a"));
    assert_eq!(parser.push("\": [1,"), [ToolOutput::Arguments("\": [1,".into())], "as they come");
    assert_eq!(parser.push("2]}}</tool_call>"), [ToolOutput::Arguments("2]}".into())]);
}

#[test]
fn the_form_follows_the_template() {
    assert_eq!(ToolFormat::of_template("{{ messages }}"), Hermes);
    assert_eq!(ToolFormat::of_template("x '[TOOL_CALLS]' y"), Mistral);
    assert_eq!(ToolFormat::of_template("'{\"name\": \"' + name + '\", \"parameters\": ' + args"), Llama3);
}

fn cut<'a>(whole: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let (mut rest, mut pieces) = (whole, Vec::new());
    for cut in cuts.iter().chain(std::iter::repeat(&5)) {
        if rest.is_empty() {
            return pieces;
        }
        let end = rest.char_indices().nth(*cut).map_or(rest.len(), |(at, _)| at);
        let (piece, behind) = rest.split_at(end);
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

proptest! {
    /// However the text is cut, the result is that of the whole text.
    #[test]
    fn cuts_do_not_matter(
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "{\"name\": \"f\", ",
            "{\"name\":", "\"arguments\": ", "\"parameters\":", "{}", "{\"a\": \"\\\"}\"}", "{", "}", "[", "]", ",", ";",
            "\"x\"", " ", "\n", "Ä", "f", "\\", "<tool", "{\"arguments\": {}, \"name\": \"g\"}",
        ]), 0..14),
        cuts in proptest::collection::vec(1usize..12, 0..40),
        format in proptest::sample::select(vec![Hermes, Llama3, Mistral]),
    ) {
        let whole = parts.concat();
        prop_assert_eq!(run(format, &cut(&whole, &cuts)), run(format, &[&whole]));
    }

    /// Nothing that is not part of a call is lost.
    #[test]
    fn text_without_a_mark_is_kept(whole in "[a-z<>_ \\n\\[\\]{}]{0,60}", cuts in proptest::collection::vec(1usize..9, 0..9)) {
        for format in [Hermes, Mistral] {
            let said = run(format, &cut(&whole, &cuts));
            prop_assert_eq!(said, if whole.is_empty() { vec![] } else { vec![text(&whole)] });
        }
    }
}
