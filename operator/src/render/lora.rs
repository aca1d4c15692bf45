//! The flags by which an engine serves adapters: Strata's has vLLM's.

use serde_json::json;

use super::files::Adapter;

/// Adapters that requests of one step may use, where there are as many. Each takes memory in the engine.
const AT_ONCE: usize = 8;

/// The arguments for these adapters. `own` are the user's, which come after and win.
pub(super) fn args(adapters: &[Adapter], own: &[String]) -> Vec<String> {
    if adapters.is_empty() {
        return Vec::new();
    }
    let is_set = |flag: &str| {
        own.iter()
            .any(|arg| arg.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
    };
    let mut args = Vec::new();
    if !is_set("--enable-lora") {
        args.push("--enable-lora".to_owned());
    }
    let all = adapters.len();
    if !is_set("--max-loras") {
        args.extend(["--max-loras".to_owned(), all.min(AT_ONCE).to_string()]);
        // vLLM keeps no more in memory than run at once, if it is not told to.
        if all > AT_ONCE && !is_set("--max-cpu-loras") {
            args.extend(["--max-cpu-loras".to_owned(), all.to_string()]);
        }
    }
    args.push("--lora-modules".to_owned());
    args.extend(adapters.iter().map(module));
    args
}

/// An adapter as `--lora-modules` names it. vLLM splits the short form at each `=` and takes one with a
/// comma for JSON.
fn module(adapter: &Adapter) -> String {
    let Adapter { name, path } = adapter;
    if path.contains(['=', ',']) {
        return json!({ "name": name, "path": path }).to_string();
    }
    format!("{name}={path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapters(n: usize) -> Vec<Adapter> {
        (0..n).map(|i| Adapter { name: format!("a{i}"), path: format!("/adapters/{i}") }).collect()
    }

    fn line(adapters: &[Adapter], own: &[&str]) -> String {
        let own: Vec<String> = own.iter().map(|arg| (*arg).to_owned()).collect();
        args(adapters, &own).join(" ")
    }

    #[test]
    fn what_the_user_says_of_adapters_is_not_said_twice() {
        assert_eq!(line(&[], &[]), "");
        assert_eq!(line(&adapters(1), &[]), "--enable-lora --max-loras 1 --lora-modules a0=/adapters/0");
        let many = line(&adapters(9), &[]);
        assert!(
            many.starts_with("--enable-lora --max-loras 8 --max-cpu-loras 9 --lora-modules a0=/"),
            "{many}"
        );
        let own = ["--max-loras=2", "--max-lora-rank", "64", "--enable-lora"];
        assert!(line(&adapters(9), &own).starts_with("--lora-modules a0=/adapters/0 a1="));
        assert!(
            line(&adapters(9), &["--max-cpu-loras", "20"]).starts_with("--enable-lora --max-loras 8 --lora")
        );
    }

    #[test]
    fn a_path_that_would_be_split_is_written_as_json() {
        let odd = Adapter { name: "a".to_owned(), path: "/v/r=8,b".to_owned() };
        assert_eq!(module(&odd), r#"{"name":"a","path":"/v/r=8,b"}"#);
    }
}
