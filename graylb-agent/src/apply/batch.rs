//! Map operations that aya does not have: many entries in one system call, and taking an entry out.
//!
//! Sizes of keys and values are checked once, by aya, when a map becomes a [`FlowMap`] or an array; what is
//! read and written here is plain data of that size.

#![expect(unsafe_code, reason = "aya has neither batch operations nor look-up-and-delete")]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, Map, MapData, MapError},
};

use super::{ApplyError, sys::bpf};

/// Commands of `bpf(2)` (enum bpf_cmd, include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
/// The kernel's own "not supported" (include/linux/errno.h), which libc does not know.
const ENOTSUPP: i32 = 524;
/// BPF_NOEXIST: insert, do not replace.
const BPF_NOEXIST: u64 = 1;

/// The part of `union bpf_attr` that batch commands use.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that commands on one element use.
#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Where to go on reading: what the kernel gave back, a bucket or an index.
pub(super) type Position = u32;

/// Room for the entries of one read.
#[derive(Debug)]
pub(super) struct Slice<K, V> {
    pub(super) keys: Vec<K>,
    /// As many for each key as there are CPUs, in a per-CPU map.
    pub(super) values: Vec<V>,
}

impl<K: Pod, V: Pod> Slice<K, V> {
    pub(super) fn new(keys: usize, values_per_key: usize) -> Self {
        Self {
            keys: Vec::with_capacity(keys),
            values: Vec::with_capacity(keys * values_per_key.max(1)),
        }
    }
}

/// Reads on from `from`, at most as many entries as there is room for. Returns where to go on, `None` at
/// the end. `map` has keys K and values V, each a multiple of 8 bytes where it is per CPU.
pub(super) fn read<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<Position>,
    slice: &mut Slice<K, V>,
) -> io::Result<Option<Position>> {
    slice.keys.clear();
    slice.values.clear();
    let room = slice.keys.capacity();
    let per_key = slice.values.capacity() / room.max(1);
    let start = from.unwrap_or(0);
    let mut next: Position = 0;
    let mut attributes = BatchAttributes {
        in_batch: from.map_or(0, |_| (&raw const start).addr() as u64),
        out_batch: (&raw mut next).addr() as u64,
        keys: slice.keys.as_mut_ptr().expose_provenance() as u64,
        values: slice.values.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are BPF_MAP_LOOKUP_BATCH's, and every pointer in them is to memory that lives
    // over the call: two words, and `count` keys and `count` × `per_key` values of spare capacity.
    let ended = match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    let count = (attributes.count as usize).min(room);
    // SAFETY: the kernel has written `count` keys, at most as many as there is room for; any bytes are a K.
    unsafe { slice.keys.set_len(count) };
    // SAFETY: as above, `per_key` values for each.
    unsafe { slice.values.set_len(count * per_key) };
    Ok((!ended).then_some(next))
}

/// The first `end` elements of an array, `per_key` values for each.
pub(super) fn read_array<V: Pod>(
    map: BorrowedFd<'_>,
    end: u32,
    per_key: usize,
) -> io::Result<Vec<V>> {
    /// Elements read at once.
    const ROOM: usize = 4096;
    let wanted = end as usize * per_key;
    let mut all: Vec<V> = Vec::with_capacity(wanted);
    let mut slice = Slice::<u32, V>::new(ROOM.min(end.max(1) as usize), per_key);
    let mut from = None;
    while all.len() < wanted {
        from = read(map, from, &mut slice)?;
        all.extend(&slice.values);
        if from.is_none() {
            break;
        }
    }
    all.truncate(wanted);
    Ok(all)
}

/// Writes one value under each key. `map` has keys K and values V and is not per CPU. On an error some of
/// them may be written. One by one, the 16,381 slots of a large Maglev table took 81 ms instead of 15.
pub(super) fn update<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    let count = keys.len().min(values.len());
    if count == 0 {
        return Ok(());
    }
    let mut attributes = BatchAttributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr().expose_provenance() as u64,
        values: values.as_ptr().expose_provenance() as u64,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are BPF_MAP_UPDATE_BATCH's; the kernel reads `count` keys and values, which the
    // two slices hold, and writes `count` alone.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attributes) }.map(drop)
}

/// Whether the kernel lacks a command, rather than refuses this call of it.
pub(super) fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

/// An LRU hash.
#[derive(Debug)]
pub(super) struct FlowMap<K, V> {
    map: HashMap<MapData, K, V>,
    size: u32,
    batched: bool,
}

impl<K: Pod, V: Pod> FlowMap<K, V> {
    /// Opens a pinned map.
    pub(super) fn open(path: &Path) -> Result<Self, ApplyError> {
        let tried =
            |error: MapError| ApplyError::new(format!("cannot open {}", path.display()), error);
        let data = MapData::from_pin(path).map_err(tried)?;
        let size = data.info().map_err(tried)?.max_entries();
        let map = HashMap::try_from(Map::LruHashMap(data)).map_err(tried)?;
        Ok(Self { map, size, batched: true })
    }

    /// Entries that fit.
    pub(super) const fn size(&self) -> u32 {
        self.size
    }

    /// The entry under `key`. Looking does not make it recently used.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.map.get(key, 0).ok()
    }

    /// Shows every entry to `visit`, `slice` by `slice`. Entries that come, or go and come again, meanwhile
    /// may be shown or not. Without batch look-up in the kernel: one key after another, at most as many
    /// as the map has room for, since an eviction can send that walk back to the start.
    pub(super) fn scan(
        &mut self,
        slice: &mut Slice<K, V>,
        visit: &mut dyn FnMut(&mut Self, &Slice<K, V>),
    ) -> io::Result<()> {
        let mut position = None;
        while self.batched {
            match read(self.map.map().fd().as_fd(), position, slice) {
                Ok(next) => {
                    visit(self, slice);
                    position = next;
                    if next.is_none() {
                        return Ok(());
                    }
                }
                // A bucket with more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    *slice = Slice::new(slice.keys.capacity() * 2, 1);
                }
                Err(error) if is_missing(&error) => self.batched = false,
                Err(error) => return Err(error),
            }
        }
        self.walk(slice, visit);
        Ok(())
    }

    fn walk(&mut self, slice: &mut Slice<K, V>, visit: &mut dyn FnMut(&mut Self, &Slice<K, V>)) {
        let room = slice.keys.capacity();
        // Keys first: removing one while walking would start the walk again.
        let keys: Vec<K> = self.map.keys().flatten().take(self.size as usize).collect();
        for some in keys.chunks(room.max(1)) {
            slice.keys.clear();
            slice.values.clear();
            for key in some {
                if let Some(value) = self.get(key) {
                    slice.keys.push(*key);
                    slice.values.push(value);
                }
            }
            visit(self, slice);
        }
    }

    /// Takes the entry under `key` out and returns it as it was in that moment; `None` where there is
    /// none any more.
    pub(super) fn take_out(&mut self, key: &K) -> Option<V> {
        let mut value = MaybeUninit::<V>::uninit();
        let mut attributes = ElementAttributes {
            map_fd: self.map.map().fd().as_fd().as_raw_fd().cast_unsigned(),
            padding: 0,
            key: std::ptr::from_ref(key).expose_provenance() as u64,
            value: value.as_mut_ptr().expose_provenance() as u64,
            flags: 0,
        };
        // SAFETY: the attributes are BPF_MAP_LOOKUP_AND_DELETE_ELEM's; the key is read and the value, of the
        // map's value size, written within the call.
        match unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) } {
            // SAFETY: the kernel has written the whole value, and any bytes are a V.
            Ok(_) => return Some(unsafe { value.assume_init() }),
            Err(error) if !is_missing(&error) => return None,
            Err(_) => {}
        }
        // Linux before 5.14: two steps.
        let value = self.get(key)?;
        self.map.remove(key).is_ok().then_some(value)
    }

    /// Puts an entry back unless its key has been taken since.
    pub(super) fn put_back(&mut self, key: &K, value: &V) {
        // A full table makes room by itself, and a newer entry is the one to keep.
        let _taken_since = self.map.insert(key, value, BPF_NOEXIST);
    }
}
