use std::path::Path;
use std::sync::mpsc::Receiver as Told;

use super::*;
use crate::block::HashChain;
use crate::step::{LoadId, SequenceId};

const SIZE: usize = 1000;

fn hashes(count: usize) -> Vec<BlockHash> {
    let mut chain = HashChain::new(Some("scope"));
    chain.extend(&vec![5; count * 16]);
    chain.hashes().to_vec()
}

fn options(folder: &Path, blocks: u64) -> KvDisk {
    let key_file = folder.join("key");
    std::fs::write(&key_file, [7; 32]).unwrap();
    KvDisk { folder: folder.join("cache"), bytes: blocks * (SIZE as u64 + seal::OVERHEAD), key_file }
}

fn open(options: &KvDisk, model: u8) -> (Disk, Told<TierEvent>) {
    let mut disk = Disk::open(options, [model; 32], SIZE).unwrap();
    let (tell, told) = mpsc::channel();
    disk.start(move |event| drop(tell.send(event))).unwrap();
    (disk, told)
}

fn store(disk: &Disk, told: &Told<TierEvent>, hash: BlockHash, fill: u8) {
    disk.write(hash, |bytes| bytes.resize(SIZE, fill));
    loop {
        match told.recv_timeout(Duration::from_secs(20)).unwrap() {
            TierEvent::Stored(stored) if stored == hash => return,
            TierEvent::Loaded { .. } => panic!("nothing was asked for"),
            _ => {}
        }
    }
}

fn load(disk: &Disk, told: &Told<TierEvent>, hash: BlockHash) -> Option<Vec<u8>> {
    assert!(disk.load(Load { id: LoadId(1), sequence: SequenceId(1), hash, block: 3 }));
    loop {
        if let TierEvent::Loaded { load, bytes } = told.recv_timeout(Duration::from_secs(20)).unwrap() {
            assert_eq!(load.hash, hash);
            disk.taken();
            return bytes;
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.retain(|path| path.file_name().is_some_and(|name| name != LOCK_NAME));
    found
}

const LOCK_NAME: &str = "strata-kv.lock";

#[test]
fn blocks_outlive_the_process_and_the_oldest_go_first() {
    let temp = tempfile::tempdir().unwrap();
    let (options, names) = (options(temp.path(), 3), hashes(5));
    let (disk, told) = open(&options, 1);
    for (i, name) in names[..3].iter().enumerate() {
        store(&disk, &told, *name, i as u8);
    }
    assert_eq!(load(&disk, &told, names[0]), Some(vec![0; SIZE]));
    store(&disk, &told, names[3], 3);
    assert!(!disk.has(&names[1]), "the least recently used went");
    assert!(Disk::open(&options, [1; 32], SIZE).unwrap_err().to_string().contains("another engine"));
    drop(disk);
    assert_eq!(files(&options.folder).len(), 3);

    // A file that was torn while it was written, and one that is cut.
    let shelf = files(&options.folder)[0].parent().unwrap().to_owned();
    std::fs::write(shelf.join(format!("{}.tmp", "0".repeat(64))), b"torn").unwrap();
    std::fs::write(shelf.join("1".repeat(64)), b"cut").unwrap();
    let (disk, told) = open(&options, 1);
    assert_eq!(files(&options.folder).len(), 3);
    for (i, there) in [(0, true), (1, false), (2, true), (3, true), (4, false)] {
        assert_eq!(disk.has(&names[i]), there, "{i}");
        assert_eq!(load(&disk, &told, names[i]), there.then(|| vec![i as u8; SIZE]));
    }
    drop(disk);
    // Another model finds nothing, and takes the room.
    let (disk, told) = open(&options, 2);
    assert!(!disk.has(&names[0]));
    store(&disk, &told, names[0], 9);
    assert_eq!(files(&options.folder).len(), 1);
    assert_eq!(load(&disk, &told, names[0]), Some(vec![9; SIZE]));
}

#[test]
fn a_damaged_file_is_a_miss_and_is_deleted() {
    let temp = tempfile::tempdir().unwrap();
    let (options, names) = (options(temp.path(), 9), hashes(2));
    let (disk, told) = open(&options, 1);
    for name in &names {
        store(&disk, &told, *name, 4);
    }
    for path in files(&options.folder) {
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(!path.display().to_string().contains("scope") && !bytes.windows(16).any(|w| w == [4; 16]));
        bytes[300] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    assert_eq!(load(&disk, &told, names[0]), None);
    assert!(!disk.has(&names[0]) && disk.has(&names[1]));
    assert_eq!(files(&options.folder).len(), 1);
    store(&disk, &told, names[0], 5);
    assert_eq!(load(&disk, &told, names[0]), Some(vec![5; SIZE]));
}

#[test]
fn a_disk_that_cannot_be_written_to_pauses_and_reads_on() {
    let temp = tempfile::tempdir().unwrap();
    let (options, names) = (options(temp.path(), 9), hashes(3));
    let (disk, told) = open(&options, 1);
    store(&disk, &told, names[0], 1);
    // A file stands where the second block's folder would be made.
    let shelf = files(&options.folder)[0].parent().unwrap().to_owned();
    let hex = disk.shared.sealer.name(&names[1]).hex();
    let blocked = shelf.parent().unwrap().join(&hex[..2]);
    assert!(!blocked.exists(), "the two blocks are on different shelves");
    std::fs::write(&blocked, b"").unwrap();
    disk.write(names[1], |bytes| bytes.resize(SIZE, 2));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !disk.shared.is_paused() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    disk.write(names[2], |_| panic!("nothing is taken during a pause"));
    assert_eq!(load(&disk, &told, names[0]), Some(vec![1; SIZE]));
}

#[test]
fn what_is_wrong_with_the_options_is_said() {
    let temp = tempfile::tempdir().unwrap();
    let good = options(temp.path(), 1);
    let error = |options: &KvDisk| {
        let text = Disk::open(options, [1; 32], SIZE).unwrap_err().to_string();
        text.replace(&temp.path().display().to_string(), "TEMP")
    };
    let short = temp.path().join("short");
    std::fs::write(&short, "secret").unwrap();
    let errors = [
        error(&KvDisk { bytes: 10, ..good.clone() }),
        error(&KvDisk { key_file: short.clone(), ..good.clone() }),
        error(&KvDisk { key_file: temp.path().join("none"), ..good.clone() }),
        error(&KvDisk { folder: short.join("x"), ..good }),
    ];
    insta::assert_snapshot!(errors.join("\n"), @"
    the KV cache's disk tier may take 10 bytes and one block takes 1076; give it more
    the key file TEMP/short of the KV cache's disk tier holds 6 bytes and must hold at least 32; make one with `head -c 32 /dev/urandom`
    the key file TEMP/none of the KV cache's disk tier cannot be read: No such file or directory (os error 2); make one with `head -c 32 /dev/urandom`
    the folder TEMP/short/x of the KV cache's disk tier cannot be made: Not a directory (os error 20)
    ");
}
