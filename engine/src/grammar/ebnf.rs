//! Context-free grammars in EBNF (`name ::= …`, the form of llama.cpp and of vLLM's documented
//! requests), written as Lark.
//!
//! The notation: literals in double quotes, `[a-z]` and `[^…]` for one character, `.` for any,
//! alternatives with `|`, groups in parentheses, `*`, `+`, `?` and `{m,n}` after an item, `#` up to the
//! line's end for comments. A rule ends where the next name stands before `::=`.

use std::collections::HashMap;
use std::fmt::Write;

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Literal(String),
    /// The inside of a character class, as a regular expression has it.
    Class(String),
    /// `(`, `)`, `|`, `*`, `+`, `?` or `.`.
    Sign(char),
    /// `{m}`, `{m,}` or `{m,n}`.
    Times(String),
    Defines,
}

/// A text as Lark has it.
pub(crate) fn literal(text: &str) -> String {
    // JSON leaves DEL as it is, and Lark's strings must not hold it.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// The same grammar as Lark, its rule `root` as `start`.
pub(super) fn to_lark(text: &str) -> Result<String, String> {
    let tokens = tokens(text)?;
    let mut names: HashMap<&str, usize> = HashMap::new();
    for pair in tokens.windows(2) {
        if let [Token::Name(name), Token::Defines] = pair {
            let next = names.len();
            if names.insert(name, next).is_some() {
                return Err(format!("the rule `{name}` is defined twice"));
            }
        }
    }
    if !names.contains_key("root") {
        return Err("the rule `root`, which is the whole, is missing".into());
    }
    let spelled = |name: &str| match names.get(name) {
        _ if name == "root" => Ok("start".to_owned()),
        Some(number) => Ok(format!("rule_{number}")),
        None => Err(format!("the rule `{name}` is not defined")),
    };
    let mut lark = String::new();
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Token::Name(name) if tokens.get(i + 1) == Some(&Token::Defines) => {
                let _ = write!(lark, "\n{}:", spelled(name)?);
            }
            Token::Name(name) => {
                let _ = write!(lark, " {}", spelled(name)?);
            }
            Token::Defines if i == 0 || !matches!(tokens[i - 1], Token::Name(_)) => {
                return Err("`::=` must follow a rule's name".into());
            }
            Token::Defines => {}
            Token::Literal(text) => {
                let _ = write!(lark, " {}", literal(text));
            }
            Token::Class(inside) => {
                let _ = write!(lark, " /[{inside}]/");
            }
            Token::Sign('.') => lark.push_str(" /(?s:.)/"),
            Token::Sign(sign @ ('(' | '|')) => {
                let _ = write!(lark, " {sign}");
            }
            Token::Sign(sign) => lark.push(*sign),
            Token::Times(times) => lark.push_str(times),
        }
    }
    Ok(lark)
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            c if c.is_whitespace() => {}
            '"' => {
                let mut literal = String::new();
                loop {
                    match chars.next().ok_or("a literal is not closed")? {
                        '"' => break,
                        '\\' => literal.push(escaped(&mut chars)?),
                        c => literal.push(c),
                    }
                }
                tokens.push(Token::Literal(literal));
            }
            '[' => tokens.push(Token::Class(class(&mut chars)?)),
            ':' => {
                if chars.next() != Some(':') || chars.next() != Some('=') {
                    return Err("`:` must begin `::=`".into());
                }
                tokens.push(Token::Defines);
            }
            '(' | ')' | '|' | '*' | '+' | '?' | '.' => tokens.push(Token::Sign(c)),
            '{' => {
                let mut times = String::from("{");
                loop {
                    match chars.next().ok_or("a `{` is not closed")? {
                        '}' => break,
                        c if c.is_ascii_digit() || c == ',' => times.push(c),
                        ' ' => {}
                        c => return Err(format!("`{{…}}` must hold numbers, and it holds `{c}`")),
                    }
                }
                times.push('}');
                tokens.push(Token::Times(times));
            }
            c if c.is_alphanumeric() || c == '_' => {
                let mut name = String::from(c);
                while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | '-')) {
                    name.push(c);
                }
                tokens.push(Token::Name(name));
            }
            other => return Err(format!("`{other}` has no meaning outside of quotes")),
        }
    }
    Ok(tokens)
}

/// The character after a backslash.
fn escaped(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, String> {
    let digits = match chars.next().ok_or("the grammar ends in a backslash")? {
        'n' => return Ok('\n'),
        'r' => return Ok('\r'),
        't' => return Ok('\t'),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        c => return Ok(c),
    };
    let hex: String = chars.by_ref().take(digits).collect();
    u32::from_str_radix(&hex, 16)
        .ok()
        .filter(|_| hex.len() == digits)
        .and_then(char::from_u32)
        .ok_or_else(|| format!("the escape of `{hex}` is no character: it needs {digits} hexadecimal digits"))
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, String> {
    let mut inside = String::new();
    if chars.next_if_eq(&'^').is_some() {
        inside.push('^');
    }
    let mut count = 0;
    loop {
        let c = match chars.next().ok_or("a `[` is not closed")? {
            ']' if count > 0 => return Ok(inside),
            ']' => return Err("`[]` holds no character".into()),
            '-' if count > 0 && chars.peek() != Some(&']') => {
                inside.push('-');
                continue;
            }
            '\\' => escaped(chars)?,
            c => c,
        };
        count += 1;
        // By number, so that no character has a meaning of its own.
        let _ = write!(inside, "\\x{{{:x}}}", u32::from(c));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_larks() {
        let sql = "root ::= select # all\nselect ::= \"SELECT \" col-1 (\", \" col-1)* \" \\\"x\\\"\"\n  | [^a-z\\n]+\ncol-1 ::= .{1,3}";
        insta::assert_snapshot!(to_lark(sql).unwrap(), @r#"
        start: rule_1
        rule_1: "SELECT " rule_2 ( ", " rule_2)* " \"x\"" | /[^\x{61}-\x{7a}\x{a}]/+
        rule_2: /(?s:.)/{1,3}
        "#);
    }

    #[test]
    fn what_is_no_grammar_is_said() {
        let errors: Vec<String> = [
            "a ::= \"x\"",
            "root ::= b",
            "root ::= \"x",
            "root ::= [a",
            "root ::= []",
            "root ::= \"\\x4\"",
            "root ::= \"\\ud800\"",
            "root ::= !",
            "root ::= \"a\" root ::= \"b\"",
            "::= \"a\" root ::= \"b\"",
            "root ::= \"a\"{x}",
            "root : \"a\" b ::= \"b\"",
        ]
        .iter()
        .map(|text| to_lark(text).unwrap_err())
        .collect();
        insta::assert_snapshot!(errors.join("\n"), @r#"
        the rule `root`, which is the whole, is missing
        the rule `b` is not defined
        a literal is not closed
        a `[` is not closed
        `[]` holds no character
        the escape of `4"` is no character: it needs 2 hexadecimal digits
        the escape of `d800` is no character: it needs 4 hexadecimal digits
        `!` has no meaning outside of quotes
        the rule `root` is defined twice
        `::=` must follow a rule's name
        `{…}` must hold numbers, and it holds `x`
        `:` must begin `::=`
        "#);
    }
}
