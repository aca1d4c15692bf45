//! Blocks that nobody holds, in the order in which they will be taken: an intrusive doubly linked
//! list, so that every move is constant time and nothing is allocated but by [`Recency::grow`].

const NONE: u32 = u32::MAX;

/// A list of block ids below a fixed bound; each is in it once or not at all.
#[derive(Clone, Debug)]
pub(crate) struct Recency {
    links: Vec<Link>,
    head: u32,
    tail: u32,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    previous: u32,
    next: u32,
    listed: bool,
}

impl Recency {
    /// The list of `0..total`, in this order.
    pub(crate) fn full(total: usize) -> Self {
        let absent = Link { previous: NONE, next: NONE, listed: false };
        let mut list = Self { links: vec![absent; total], head: NONE, tail: NONE, len: 0 };
        for block in 0..total as u32 {
            list.push_last(block);
        }
        list
    }

    /// One block more, which is to be taken before all others.
    pub(crate) fn grow(&mut self) {
        let block = self.links.len() as u32;
        self.links.push(Link { previous: NONE, next: NONE, listed: false });
        self.push_first(block);
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// To be taken after all others.
    pub(crate) fn push_last(&mut self, block: u32) {
        let link = Link { previous: self.tail, next: NONE, listed: true };
        self.insert(block, link);
    }

    /// To be taken before all others.
    pub(crate) fn push_first(&mut self, block: u32) {
        let link = Link { previous: NONE, next: self.head, listed: true };
        self.insert(block, link);
    }

    /// Takes the first.
    pub(crate) fn pop_first(&mut self) -> Option<u32> {
        let block = self.head;
        (block != NONE).then(|| {
            self.remove(block);
            block
        })
    }

    /// Takes this one out of its place.
    pub(crate) fn remove(&mut self, block: u32) {
        let link = self.links[block as usize];
        assert!(link.listed, "block {block} is taken from the free list while it is not in it");
        match link.previous {
            NONE => self.head = link.next,
            previous => self.links[previous as usize].next = link.next,
        }
        match link.next {
            NONE => self.tail = link.previous,
            next => self.links[next as usize].previous = link.previous,
        }
        self.links[block as usize].listed = false;
        self.len -= 1;
    }

    fn insert(&mut self, block: u32, link: Link) {
        assert!(!self.links[block as usize].listed, "block {block} is freed twice");
        match link.previous {
            NONE => self.head = block,
            previous => self.links[previous as usize].next = block,
        }
        match link.next {
            NONE => self.tail = block,
            next => self.links[next as usize].previous = block,
        }
        self.links[block as usize] = link;
        self.len += 1;
    }
}
