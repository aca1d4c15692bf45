use super::*;
use proptest::prelude::*;

fn run(pieces: &[&str]) -> Vec<ToolOutput> {
    let mut parser = ToolParser::default();
    let mut out: Vec<ToolOutput> = pieces.iter().flat_map(|p| parser.push(p)).collect();
    out.extend(parser.flush());
    // Neighbouring texts are one text, however they were cut.
    out.into_iter().fold(Vec::new(), |mut whole, output| {
        match (whole.last_mut(), output) {
            (Some(ToolOutput::Text(before)), ToolOutput::Text(more)) => before.push_str(&more),
            (_, output) => whole.push(output),
        }
        whole
    })
}

fn call(name: &str, arguments: &str) -> ToolOutput {
    ToolOutput::Call(FunctionCall { name: name.into(), arguments: arguments.into() })
}

fn text(text: &str) -> ToolOutput {
    ToolOutput::Text(text.into())
}

#[test]
fn calls_and_the_text_around_them() {
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    assert_eq!(run(&[one]), [call("f", "{\"a\":1}")]);
    assert_eq!(
        run(&["I look.\n", one, "\n", one, "\n"]),
        [text("I look."), call("f", "{\"a\":1}"), call("f", "{\"a\":1}")]
    );
    assert_eq!(run(&["<tool_call>{\"name\": \"f\"}"]), [call("f", "{}")], "not closed, but whole");
    assert_eq!(run(&["<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}</tool_call>"]), [call("f", "{}")]);
    assert_eq!(run(&["a < b <tool"]), [text("a < b <tool")], "a beginning that comes to nothing is text");
}

#[test]
fn what_is_no_call_stays_text() {
    let broken = "<tool_call>{\"name\": </tool_call>";
    assert_eq!(run(&["Hm. ", broken]), [text(&format!("Hm.{broken}"))]);
    assert_eq!(run(&["<tool_call>[1]"]), [text("<tool_call>[1]")]);
    let mut parser = ToolParser::default();
    parser.push(broken);
    assert!(!parser.called());
}

#[test]
fn text_streams_until_a_tag_could_begin() {
    let mut parser = ToolParser::default();
    assert_eq!(parser.push("Hello"), [text("Hello")]);
    assert_eq!(parser.push(" <tool"), []);
    assert_eq!(parser.push("box>"), [text(" <toolbox>")]);
    assert_eq!(parser.push("<tool_call>{\"name\": \"f\""), [], "held back from the tag on");
    assert_eq!(parser.push("}</tool_call>"), [call("f", "{}")]);
}

proptest! {
    #[test]
    fn cuts_do_not_matter(cuts in proptest::collection::vec(1usize..12, 0..40)) {
        let whole = "Ä <tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call> \n<tool_call>{\"name\":\"g\"}</tool_call>\n bye <tool";
        let chars: Vec<char> = whole.chars().collect();
        let (mut at, mut pieces) = (0, Vec::new());
        for cut in cuts.into_iter().chain(std::iter::repeat(5)) {
            if at >= chars.len() { break; }
            let end = (at + cut).min(chars.len());
            pieces.push(chars[at..end].iter().collect::<String>());
            at = end;
        }
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run(&pieces), run(&[whole]));
    }
}
