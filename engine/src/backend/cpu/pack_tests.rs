//! Packed matrices against codes that are put one at a time.

use proptest::prelude::*;

use super::super::simd::Level;
use super::*;
use crate::tensor::Bytes;

/// One row in its lane: every code by itself, as [`codes`](super::super::codes) describes the layout.
fn plain_row(kind: TensorKind, row: &[u8], layout: &Layout, lane: usize, group: &mut [u8]) {
    let form = layout.form;
    for tile in 0..layout.tiles {
        let StoredTile { codes, scales, minima, scale_of_scales, scale_of_minima } =
            stored_tile(kind, row, tile);
        let low_mask = (1u16 << form.low_bits) - 1;
        for (input, &code) in codes.map(u32::to_le_bytes).as_flattened().iter().enumerate() {
            let (vector, byte) = (input / 4, 4 * lane + input % 4);
            let mut put = |start: usize, bits: usize, code: u8| {
                // A code of `bits` bits: fields of vector v lie in byte vectors v mod `bits`.
                let at = start + (tile * bits + vector % bits) * CODES + byte;
                group[at] |= code << (vector / bits * bits);
            };
            put(layout.low, form.low_bits, code & low_mask as u8);
            if form.high_bits > 0 {
                put(layout.high, form.high_bits, code >> form.low_bits);
            }
        }
        let mut put_scales = |start: usize, scales: &[[u8; 2]; 2]| {
            for (part, scale) in scales.iter().take(form.parts).enumerate() {
                let at = start + ((tile * form.parts + part) * LANES + lane) * form.scale_bytes;
                group[at..at + form.scale_bytes].copy_from_slice(&scale[..form.scale_bytes]);
            }
        };
        put_scales(layout.scales, &scales);
        if form.minima {
            put_scales(layout.minima, &minima);
        }
        if form.scale_bytes == 1 && tile.is_multiple_of(SUPER_TILES) {
            let at = (tile / SUPER_TILES * LANES + lane) * 2;
            group[layout.scale_of_scales + at..][..2].copy_from_slice(&scale_of_scales);
            if form.minima {
                group[layout.scale_of_minima + at..][..2].copy_from_slice(&scale_of_minima);
            }
        }
    }
}

proptest! {
    #[test]
    fn every_format_is_packed_as_its_plain_form(
        rows in 1usize..40, blocks in 1usize..4, bytes in prop::collection::vec(any::<u8>(), 1024),
    ) {
        let mut machine = Machine::new(Level::detect(), 2).unwrap();
        for kind in TensorKind::ALL {
            let Some(form) = Form::of(kind) else { continue };
            let cols = blocks * kind.block_len();
            let len = kind.bytes_for(cols).unwrap() * rows;
            let stored: Vec<u8> = bytes.iter().copied().cycle().take(len).collect();
            let tensor = Tensor::new(kind, rows, cols, Bytes::from(stored)).unwrap();
            let packed = Packed::new(&mut machine, &tensor).unwrap().unwrap();
            let layout = Layout::new(form, cols / BLOCK);
            let mut want = vec![0; rows.div_ceil(GROUP) * layout.len];
            for row in 0..rows {
                let group = &mut want[row / GROUP * layout.len..][..layout.len];
                plain_row(kind, tensor.row(row), &layout, row % GROUP, group);
            }
            prop_assert!(bytes_of(&packed) == want, "{}", kind);
        }
    }
}

fn bytes_of(packed: &Packed) -> &[u8] {
    bytes(&packed.lines)
}
