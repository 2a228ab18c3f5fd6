//! Filters that are asked of packets in files: classic BPF as libpcap compiles it, run here.
//!
//! libpcap's own interpreter can be reached only with the length of what was kept as the packet's length; `greater 500` would then find nothing
//! in a capture of headers. (S. McCanne, V. Jacobson, "The BSD Packet Filter", 1993, section 3.)
//!
//! It must not know libpcap, nor the language of filters.
//!
//! **Invariants:** no program and no packet cause a panic; a program ends, since jumps go forward only. What reads beyond the bytes that were
//! kept does not match.

/// An instruction: what to do, how far to jump if so and if not, and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions are left out if the test holds.
    pub yes: u8,
    /// If it does not.
    pub no: u8,
    /// The number.
    pub k: u32,
}

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Program(pub Vec<Instruction>);

/// Words of scratch memory.
const MEMORY: usize = 16;

struct Machine<'a> {
    data: &'a [u8],
    /// The packet's length on the wire.
    len: u32,
    a: u32,
    x: u32,
    memory: [u32; MEMORY],
}

/// How it goes on.
enum Then {
    Next,
    Jump(u32),
    End(u32),
}

impl Program {
    /// Whether it wants a packet that begins with `data` and was `len` bytes long.
    pub fn wants(&self, data: &[u8], len: u32) -> bool {
        let mut machine = Machine { data, len, a: 0, x: 0, memory: [0; MEMORY] };
        let mut at = 0usize;
        while let Some(instruction) = self.0.get(at) {
            match machine.step(instruction) {
                Some(Then::Next) => at += 1,
                Some(Then::Jump(over)) => at = at.saturating_add(over as usize).saturating_add(1),
                Some(Then::End(value)) => return value != 0,
                None => return false,
            }
        }
        false
    }
}

impl Machine<'_> {
    /// `None` where the instruction is none, or cannot be done.
    fn step(&mut self, instruction: &Instruction) -> Option<Then> {
        let Instruction { code, k, .. } = *instruction;
        match code & 0x07 {
            0x00 => self.a = self.load(code, k)?,
            0x01 if code & 0xf8 == 0xa0 | 0x10 => self.x = u32::from(*self.data.get(k as usize)? & 0x0f) * 4,
            0x01 => self.x = self.constant(code, k)?,
            0x02 => *self.memory.get_mut(k as usize)? = self.a,
            0x03 => *self.memory.get_mut(k as usize)? = self.x,
            0x04 => self.a = self.compute(code, k)?,
            0x05 => return self.jump(instruction),
            0x06 => return self.value(code, k).map(Then::End),
            _ if code & 0xf8 == 0x80 => self.a = self.x,
            _ => self.x = self.a,
        }
        Some(Then::Next)
    }

    fn load(&self, code: u16, k: u32) -> Option<u32> {
        match code & 0xe0 {
            0x20 => self.bytes(code, k),
            0x40 => self.bytes(code, k.checked_add(self.x)?),
            _ => self.constant(code, k),
        }
    }

    /// A number, a word of memory, or the length.
    fn constant(&self, code: u16, k: u32) -> Option<u32> {
        match code & 0xe0 {
            0x00 => Some(k),
            0x60 => self.memory.get(k as usize).copied(),
            0x80 => Some(self.len),
            _ => None,
        }
    }

    fn bytes(&self, code: u16, at: u32) -> Option<u32> {
        let rest = self.data.get(at as usize..)?;
        match code & 0x18 {
            0x00 => rest.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)),
            0x08 => rest.first_chunk().map(|bytes| u16::from_be_bytes(*bytes).into()),
            0x10 => rest.first().map(|byte| u32::from(*byte)),
            _ => None,
        }
    }

    fn operand(&self, code: u16, k: u32) -> u32 {
        if code & 0x08 != 0 { self.x } else { k }
    }

    fn compute(&self, code: u16, k: u32) -> Option<u32> {
        let (a, b) = (self.a, self.operand(code, k));
        Some(match code & 0xf0 {
            0x00 => a.wrapping_add(b),
            0x10 => a.wrapping_sub(b),
            0x20 => a.wrapping_mul(b),
            0x30 => a.checked_div(b)?,
            0x40 => a | b,
            0x50 => a & b,
            0x60 => a.checked_shl(b).unwrap_or(0),
            0x70 => a.checked_shr(b).unwrap_or(0),
            0x80 => a.wrapping_neg(),
            0x90 => a.checked_rem(b)?,
            0xa0 => a ^ b,
            _ => return None,
        })
    }

    fn jump(&self, instruction: &Instruction) -> Option<Then> {
        let Instruction { code, yes, no, k } = *instruction;
        let (a, b) = (self.a, self.operand(code, k));
        let holds = match code & 0xf0 {
            0x00 => return Some(Then::Jump(k)),
            0x10 => a == b,
            0x20 => a > b,
            0x30 => a >= b,
            0x40 => a & b != 0,
            _ => return None,
        };
        Some(Then::Jump(if holds { yes } else { no }.into()))
    }

    fn value(&self, code: u16, k: u32) -> Option<u32> {
        match code & 0x18 {
            0x00 => Some(k),
            0x08 => Some(self.x),
            0x10 => Some(self.a),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn instruction() -> impl Strategy<Value = Instruction> {
        (any::<u16>(), 0u8..6, 0u8..6, prop_oneof![0u32..80, any::<u32>()]).prop_map(|(code, yes, no, k)| Instruction {
            code: code & 0xff,
            yes,
            no,
            k,
        })
    }

    proptest! {
        #[test]
        fn any_program_ends(
            program in proptest::collection::vec(instruction(), 0..40),
            data in proptest::collection::vec(any::<u8>(), 0..80), len: u32,
        ) {
            let wanted = Program(program.clone()).wants(&data, len);
            // Nobody wants anything who never says so.
            prop_assert!(!wanted || program.iter().any(|instruction| instruction.code & 7 == 6));
        }
    }
}
