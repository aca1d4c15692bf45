//! Damage, by a seed.

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, or 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// What readers tend to stumble over, as text and as little-endian numbers.
const AWKWARD: &[&[u8]] = &[
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x00\x00\x00\x00\x80",
    b"\x00\x00\x00\x00",
    b"\x01\x00\x00\x00\x00\x00\x00\x00",
    b"99999999999999999999",
    b"-1",
    b"1e309",
    b"0",
    b"null",
    b"[]",
    b"{}",
    b"\"\"",
    b"[[[[[[[[[[[[[[[[",
    b"\"\\ud800\"",
    b"{{",
    b"{% for i in range(9) %}",
    b"{% endfor %}",
    b"\xf0\x9f\x8c\x8d",
];

/// The same with a few places damaged: bytes flipped, overwritten, cut out, repeated or put in.
pub(super) fn mutate(random: &mut Random, whole: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=random.below(4) {
        // Beginnings hold what lengths and kinds hang on: half of all damage is done there.
        let end = if random.below(2) == 0 { bytes.len().min(4096) } else { bytes.len() };
        let at = random.below(end);
        let len = random.below(16).min(bytes.len() - at);
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
            2 => drop(bytes.drain(at..at + len)),
            3 => {
                let piece = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            4 => {
                let piece = AWKWARD[random.below(AWKWARD.len())];
                let over = if random.below(2) == 0 { piece.len().min(bytes.len() - at) } else { 0 };
                bytes.splice(at..at + over, piece.iter().copied());
            }
            5 if random.below(8) == 0 => bytes.truncate(at),
            // A member of JSON takes another's value.
            _ => swap_values(random, &mut bytes),
        }
    }
    bytes
}

/// Puts what follows one colon behind another.
fn swap_values(random: &mut Random, bytes: &mut Vec<u8>) {
    let colons: Vec<usize> =
        bytes.iter().enumerate().filter(|(_, b)| **b == b':').map(|(i, _)| i + 1).take(4096).collect();
    if colons.len() < 2 {
        return;
    }
    let value = |from: usize| {
        let end = bytes[from..].iter().position(|b| matches!(b, b',' | b'}' | b']'));
        from..end.map_or(bytes.len(), |end| from + end)
    };
    let (from, to) = (colons[random.below(colons.len())], colons[random.below(colons.len())]);
    let piece = bytes[value(from)].to_vec();
    let over = value(to);
    bytes.splice(over, piece);
}
