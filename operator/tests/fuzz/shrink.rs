//! Makes an input that fails as small as it can be.

use serde_json::Value;

/// The smallest found for which `fails` holds.
pub(crate) fn shrink(object: &Value, fails: &dyn Fn(&Value) -> bool) -> Value {
    let mut best = object.clone();
    for _ in 0..20 {
        let mut pointers = Vec::new();
        collect(&best, "", &mut pointers);
        let before = best.clone();
        for pointer in pointers {
            let mut smaller = best.clone();
            if remove(&mut smaller, &pointer) && fails(&smaller) {
                best = smaller;
            }
        }
        if best == before {
            break;
        }
    }
    best
}

/// Pointers to all members and items, the larger first.
fn collect(value: &Value, path: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let pointer = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
                into.push(pointer.clone());
                collect(inner, &pointer, into);
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate().rev() {
                let pointer = format!("{path}/{index}");
                into.push(pointer.clone());
                collect(inner, &pointer, into);
            }
        }
        _ => {}
    }
}

fn remove(object: &mut Value, pointer: &str) -> bool {
    let Some((parent, key)) = pointer.rsplit_once('/') else { return false };
    match object.pointer_mut(parent) {
        Some(Value::Object(map)) => map.remove(&key.replace("~1", "/").replace("~0", "~")).is_some(),
        Some(Value::Array(list)) => match key.parse::<usize>() {
            Ok(index) if index < list.len() => {
                list.remove(index);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

#[test]
fn what_matters_stays() {
    let object = serde_json::json!({ "a": [1, { "b/c": 7, "d": 8 }], "e": "f" });
    let small = shrink(&object, &|v| v.pointer("/a").is_some_and(|a| a.to_string().contains('7')));
    assert_eq!(small.to_string(), r#"{"a":[{"b/c":7}]}"#);
}
