//! Good adapters and bad ones, made here.

use std::path::Path;
use std::sync::Arc;

use ::safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::{Confined, LayerLora, LoraWeights, LowRank, Part, Read, Target, read};
use crate::model::spec::{ExpertsSpec, LayerSpec, ModelSpec, RopeLayout};
use crate::tensor::{Bytes, Tensor, TensorKind};

/// Random numbers of a width, the same for the same seed.
fn numbers(seed: u64, len: usize, width: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * width
    };
    (0..len).map(|_| next()).collect()
}

fn matrix(seed: u64, rows: usize, cols: usize) -> Tensor {
    let bytes: Vec<u8> =
        numbers(seed, rows * cols, (cols as f32).powf(-0.5)).iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor::new(TensorKind::F32, rows, cols, Bytes::from(bytes)).unwrap()
}

/// A random adapter of everything that one can change in a model of this shape.
pub(crate) fn random(spec: &ModelSpec, rank: usize, seed: u64) -> LoraWeights {
    let layer = |index: usize| {
        let mut layer = LayerLora::default();
        for target in Target::ALL {
            let parts = (0..4).map(Part::Expert).chain([Part::Shared]);
            for (place, part) in parts.enumerate().filter(|(_, part)| target.is_in(spec, index, *part)) {
                // Of the experts only some.
                if matches!(part, Part::Expert(expert) if (expert + index) % 3 == 1) {
                    continue;
                }
                let (rows, cols) = target.shape(spec, part);
                let place = (index * Target::ALL.len() + target as usize) * 5 + (place + 1) % 5;
                let own = seed * 1000 + place as u64 * 2;
                let (a, b) = (matrix(own, rank, cols), matrix(own + 1, rows, rank));
                assert!(layer.set(part, target, LowRank { a, b, scale: 1.5 }));
            }
        }
        layer
    };
    let layers: Vec<LayerLora> = (0..spec.layers).map(layer).collect();
    LoraWeights { layers: Arc::from(layers) }
}

/// A tensor to be written: its name, shape and numbers.
type Named = (String, Vec<usize>, Vec<f32>);

/// The tensors of an adapter of queries and down projections.
fn tensors(spec: &ModelSpec, rank: usize) -> Vec<Named> {
    let mut all = Vec::new();
    for layer in 0..spec.layers {
        for (module, target) in [("self_attn.q_proj", Target::Query), ("mlp.down_proj", Target::Down)] {
            let (rows, cols) = target.shape(spec, Part::Shared);
            for (half, rows, cols) in [("A", rank, cols), ("B", rows, rank)] {
                let name = format!("base_model.model.model.layers.{layer}.{module}.lora_{half}.weight");
                all.push((name, vec![rows, cols], numbers(all.len() as u64 + 7, rows * cols, 0.3)));
            }
        }
    }
    all
}

pub(crate) fn config() -> Value {
    json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": false, "use_dora": false,
           "modules_to_save": null, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1,
           "init_lora_weights": true, "rank_pattern": {}, "alpha_pattern": {}, "loftq_config": {}})
}

fn write(folder: &Path, config: &Value, tensors: &[Named], kind: Dtype) {
    let bytes = |numbers: &[f32]| -> Vec<u8> {
        match kind {
            Dtype::F32 => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            _ => numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        }
    };
    let stored: Vec<_> = tensors.iter().map(|(name, shape, x)| (name, shape, bytes(x))).collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(kind, (*shape).clone(), bytes).unwrap()));
    let file = ::safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

pub(crate) fn spec() -> ModelSpec {
    ModelSpec::tiny(50)
}

/// A folder with a good adapter for [`spec`].
pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &config(), &tensors(&spec(), 4), Dtype::F32);
    folder
}

fn reading(spec: &ModelSpec) -> Read<'_> {
    Read { spec, max_rank: 16, within: None }
}

fn refusal(folder: &Path) -> String {
    read(folder, reading(&spec())).unwrap_err().to_string().replace(&folder.display().to_string(), "DIR")
}

#[test]
fn every_precision_is_read_and_only_what_changes_answers_is_another_adapter() {
    let (spec, folder) = (spec(), folder());
    let first = read(folder.path(), reading(&spec)).unwrap();
    let pair = first.layers[1].get(Target::Down).unwrap();
    assert_eq!((pair.a.rows(), pair.a.cols(), pair.b.rows()), (4, 96, 64));
    assert!((pair.scale - 2.0).abs() < f32::EPSILON && first.layers[0].get(Target::Key).is_none());
    assert_eq!(*pair.a.to_f32(), tensors(&spec, 4)[6].2[..]);
    let mut digests = vec![first.digest()];
    for kind in [Dtype::F16, Dtype::BF16] {
        write(folder.path(), &config(), &tensors(&spec, 4), kind);
        digests.push(read(folder.path(), reading(&spec)).unwrap().digest());
    }
    for (field, value) in [("lora_alpha", json!(9)), ("use_rslora", json!(true)), ("lora_dropout", json!(0))]
    {
        let mut config = config();
        config[field] = value;
        write(folder.path(), &config, &tensors(&spec, 4), Dtype::F32);
        digests.push(read(folder.path(), reading(&spec)).unwrap().digest());
    }
    assert_eq!(digests.pop(), Some(first.digest()), "a dropout changes no answer");
    let mut changed = tensors(&spec, 4);
    changed[3].2[5] += 1e-3;
    write(folder.path(), &config(), &changed, Dtype::F32);
    digests.push(read(folder.path(), reading(&spec)).unwrap().digest());
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 6);
}

#[test]
fn ranks_and_alphas_of_single_modules_are_read() {
    let (spec, folder) = (spec(), folder());
    let mut all = tensors(&spec, 4);
    // The down projection of the second layer has another rank.
    for (name, shape, numbers) in &mut all {
        if name.contains("layers.1.mlp.down_proj") {
            for side in shape.iter_mut().filter(|side| **side == 4) {
                *side = 9;
            }
            numbers.resize(shape.iter().product(), 0.25);
        }
    }
    let mut said = config();
    said["rank_pattern"] = json!({r"layers\.1\.mlp\.down_proj": 9});
    said["alpha_pattern"] = json!({"down_proj": 18, "layers.0.self_attn.q_proj": 6});
    let pair = |stabilised: bool, layer: usize, target| {
        let mut said = said.clone();
        said["use_rslora"] = json!(stabilised);
        write(folder.path(), &said, &all, Dtype::F32);
        let weights = read(folder.path(), reading(&spec)).unwrap();
        let pair = weights.layers[layer].get(target).unwrap().clone();
        (pair.a.rows(), pair.scale)
    };
    assert_eq!(pair(false, 0, Target::Query), (4, 6.0 / 4.0));
    assert_eq!(pair(false, 1, Target::Query), (4, 8.0 / 4.0));
    assert_eq!(pair(false, 0, Target::Down), (4, 18.0 / 4.0));
    assert_eq!(pair(false, 1, Target::Down), (9, 18.0 / 9.0));
    assert_eq!(pair(true, 1, Target::Down), (9, 18.0 / 3.0), "by the root of its own rank");
    let error = read(folder.path(), Read { max_rank: 8, ..reading(&spec) }).unwrap_err().to_string();
    assert!(
        error.contains("`rank_pattern` for `layers\\.1\\.mlp\\.down_proj` is 9 and at most 8"),
        "{error}"
    );
}

/// A model whose second layer is a mixture of four experts.
fn mixture() -> ModelSpec {
    let experts = ExpertsSpec { count: 4, used: 2, intermediate: 32, normalise: true };
    let mixed = LayerSpec { experts: true, ..LayerSpec::default() };
    ModelSpec { experts: Some(experts), per_layer: vec![LayerSpec::default(), mixed], ..spec() }
}

#[test]
fn experts_are_changed_under_either_family_s_names() {
    let (spec, folder) = (mixture(), tempfile::tempdir().unwrap());
    let read_with = |names: [&str; 4], modules: [&str; 4]| {
        let mut all = Vec::new();
        for (name, rows, cols) in
            names.into_iter().zip([(32, 64), (32, 64), (64, 32), (4, 64)]).map(|(n, s)| (n, s.0, s.1))
        {
            for (half, shape) in [("A", vec![4, cols]), ("B", vec![rows, 4])] {
                let name = format!("base_model.model.model.layers.1.{name}.lora_{half}.weight");
                let numbers = numbers(all.len() as u64 + 3, shape.iter().product(), 0.3);
                all.push((name, shape, numbers));
            }
        }
        let mut said = config();
        said["target_modules"] = json!(modules);
        write(folder.path(), &said, &all, Dtype::F32);
        read(folder.path(), reading(&spec))
    };
    let mixtral =
        ["experts.3.w1", "experts.0.w3", "experts.3.w2", "gate"].map(|n| format!("block_sparse_moe.{n}"));
    let mixtral = read_with(mixtral.each_ref().map(String::as_str), ["w1", "w2", "w3", "gate"]).unwrap();
    let qwen = ["experts.3.gate_proj", "experts.0.up_proj", "experts.3.down_proj", "gate"]
        .map(|n| format!("mlp.{n}"));
    let qwen = qwen.each_ref().map(String::as_str);
    let modules = ["gate_proj", "up_proj", "down_proj", "gate"];
    assert_eq!(read_with(qwen, modules).unwrap().digest(), mixtral.digest(), "names change nothing");
    let layer = &mixtral.layers[1];
    let shape = |pair: &LowRank| (pair.b.rows(), pair.a.cols());
    assert_eq!(layer.get_expert(3, Target::Gate).map(shape), Some((32, 64)));
    assert_eq!(layer.get_expert(0, Target::Up).map(shape), Some((32, 64)));
    assert_eq!(layer.get_expert(3, Target::Down).map(shape), Some((64, 32)));
    assert_eq!(layer.get(Target::Router).map(shape), Some((4, 64)));
    assert!(layer.get_expert(0, Target::Gate).is_none() && layer.get(Target::Gate).is_none());
    assert_eq!(mixtral.check(&spec), Ok(()));
    assert!(mixtral.check(&super::tests::spec()).is_err(), "of a model without experts it is none");
    let mut messages = Vec::new();
    for other in
        ["mlp.experts.4.gate_proj", "mlp.gate_proj", "mlp.experts.x.gate_proj", "mlp.experts.gate_proj"]
    {
        let mut names = qwen;
        names[0] = other;
        let error = read_with(names, modules).unwrap_err().to_string();
        messages.push(error.replace(&folder.path().display().to_string(), "DIR"));
    }
    insta::assert_snapshot!("bad_experts", messages.join("\n"));
}

#[test]
fn rows_follow_the_base_where_it_interleaves_the_halves_of_a_head() {
    let (halves, folder) = (spec(), folder());
    let mut interleaved = halves.clone();
    interleaved.rope.layout = RopeLayout::Interleaved;
    let of = |spec: &ModelSpec, target| {
        let weights = read(folder.path(), reading(spec)).unwrap();
        weights.layers[0].get(target).unwrap().b.clone()
    };
    let (from, to) = (of(&halves, Target::Query), of(&interleaved, Target::Query));
    // Heads of 16: the pair (i, i + 8) of a head comes to (2 i, 2 i + 1).
    for (row, source) in [(0, 0), (1, 8), (2, 1), (15, 15), (16, 16), (17, 24), (63, 63), (62, 55)] {
        assert_eq!(to.row(row), from.row(source), "row {row}");
    }
    assert_eq!(of(&halves, Target::Down).to_f32(), of(&interleaved, Target::Down).to_f32());
    interleaved.rope.dims = 8;
    let error = read(folder.path(), reading(&interleaved)).unwrap_err().to_string();
    assert!(error.contains("rotates in part"), "{error}");
}

#[test]
fn each_bad_configuration_says_what_is_wrong() {
    let folder = folder();
    let mut messages = Vec::new();
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("r", json!(0)),
        ("r", json!(17)),
        ("r", json!("8")),
        ("lora_alpha", json!(null)),
        ("lora_alpha", json!(1e300)),
        ("bias", json!("all")),
        ("use_rslora", json!("yes")),
        ("use_dora", json!(true)),
        ("use_something_new", json!(true)),
        ("arrow_config", json!({"top_k": 3})),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 8})),
        ("rank_pattern", json!({"q_proj": 17})),
        ("rank_pattern", json!({"q_proj": 0.5})),
        ("rank_pattern", json!(["q_proj"])),
        ("alpha_pattern", json!({"q_proj": "8"})),
        ("alpha_pattern", json!({"q_proj": 1e300})),
        ("alpha_pattern", json!({"(": 1})),
        ("layer_replication", json!([[0, 2]])),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("target_modules", json!(["q_proj", "embed_tokens"])),
        ("target_modules", json!(["q_proj", "k_proj", "down_proj"])),
        ("target_modules", json!([])),
        ("target_modules", json!([1])),
        ("target_modules", json!(null)),
    ] {
        let mut config = config();
        config[field] = value;
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        messages.push(refusal(folder.path()));
    }
    for text in ["{", "[]", "{}"] {
        std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
        messages.push(refusal(folder.path()));
    }
    insta::assert_snapshot!("bad_configurations", messages.join("\n"));
}

#[test]
fn each_bad_weight_says_what_is_wrong() {
    let (spec, folder) = (spec(), folder());
    let mut messages = Vec::new();
    let mut spoil = |change: &dyn Fn(&mut Vec<Named>)| {
        let mut all = tensors(&spec, 4);
        change(&mut all);
        write(folder.path(), &config(), &all, Dtype::F32);
        messages.push(refusal(folder.path()));
    };
    let renamed = |name: &'static str| move |all: &mut Vec<Named>| name.clone_into(&mut all[0].0);
    spoil(&renamed("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"));
    spoil(&renamed("base_model.model.model.embed_tokens.lora_embedding_A"));
    spoil(&renamed("base_model.model.lm_head.lora_A.weight"));
    spoil(&renamed("base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"));
    spoil(&renamed("base_model.model.model.layers.0.mlp.experts.3.gate_proj.lora_A.weight"));
    spoil(&renamed("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"));
    spoil(&renamed("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"));
    spoil(&renamed("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"));
    spoil(&|all| drop(all.remove(0)));
    spoil(&|all| drop(all.drain(..)));
    spoil(&|all| all[0].1 = vec![64, 4]);
    spoil(&|all| all[1].1 = vec![32, 8]);
    spoil(&|all| all[2].2[9] = f32::NAN);
    let path = folder.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    messages.push(refusal(folder.path()));
    std::fs::write(&path, vec![0; 20 << 20]).unwrap();
    messages.push(refusal(folder.path()));
    std::fs::rename(&path, folder.path().join("adapter_model.bin")).unwrap();
    messages.push(refusal(folder.path()));
    std::fs::remove_file(folder.path().join("adapter_config.json")).unwrap();
    messages.push(refusal(folder.path()));
    messages.push(refusal(&folder.path().join("absent")));
    insta::assert_snapshot!("bad_weights", messages.join("\n"));
}

#[test]
fn nothing_leads_out_of_the_folder_that_adapters_come_from() {
    let (spec, outer) = (spec(), tempfile::tempdir().unwrap());
    let (allowed, elsewhere) = (outer.path().join("allowed"), outer.path().join("elsewhere"));
    for folder in [&allowed, &elsewhere] {
        std::fs::create_dir_all(folder.join("a")).unwrap();
        write(&folder.join("a"), &config(), &tensors(&spec, 4), Dtype::F32);
    }
    let link = |from: &Path, to: &Path| std::os::unix::fs::symlink(to, from).unwrap();
    link(&allowed.join("out"), &elsewhere.join("a"));
    link(&allowed.join("in"), &allowed.join("a"));
    std::fs::create_dir(allowed.join("linked")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        link(&allowed.join("linked").join(file), &elsewhere.join("a").join(file));
    }
    link(&outer.path().join("named"), &allowed);
    let within = Confined::below(&outer.path().join("named")).unwrap();
    let how = Read { within: Some(&within), ..reading(&spec) };
    let outcome = |path: &Path| match read(path, how) {
        Ok(_) => "read".to_owned(),
        Err(error) => error.to_string().replace(&outer.path().display().to_string(), "DIR"),
    };
    for inside in [Path::new("a"), Path::new("in"), &outer.path().join("named/a"), &allowed.join("a")] {
        assert_eq!(outcome(inside), "read", "{}", inside.display());
    }
    let refused: Vec<String> = [
        Path::new("out"),
        Path::new("linked"),
        Path::new("../elsewhere/a"),
        Path::new("a/../../elsewhere/a"),
        &elsewhere.join("a"),
        &elsewhere.join("absent"),
        Path::new("absent"),
        Path::new("a/adapter_config.json"),
    ]
    .map(outcome)
    .into();
    insta::assert_snapshot!("outside", refused.join("\n"));
    assert!(Confined::below(&outer.path().join("absent")).is_err());
    assert!(Confined::below(&allowed.join("a/adapter_config.json")).is_err());
}
