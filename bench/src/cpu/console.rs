//! What a guest says, and the two marks between which it is measured.

use super::guest::Guest;

/// Bytes of the last words that an error shows.
const LAST_WORDS: usize = 300;

/// Something awaited was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The measurement begins.
    Begin,
    /// It ends.
    End,
}

/// A guest's console, as far as it was said.
pub struct Console<'a> {
    guest: &'a Guest,
    text: Vec<u8>,
    /// Where what was not yet looked at begins.
    from: usize,
    begun: bool,
}

impl<'a> Console<'a> {
    pub fn new(guest: &'a Guest) -> Self {
        Self {
            guest,
            text: Vec::new(),
            from: 0,
            begun: guest.begin.is_none(),
        }
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(bytes);
    }

    /// What is awaited now.
    pub fn awaited(&self) -> &'a str {
        match &self.guest.begin {
            Some(begin) if !self.begun => begin,
            _ => &self.guest.end,
        }
    }

    /// The next mark, if it was said.
    pub fn mark(&mut self) -> Option<Mark> {
        let awaited = self.awaited().as_bytes();
        let rest = &self.text[self.from..];
        let Some(at) = rest.windows(awaited.len()).position(|part| part == awaited) else {
            // The next bytes may complete one whose start is here.
            self.from += rest.len().saturating_sub(awaited.len());
            return None;
        };
        self.from += at + awaited.len();
        if self.begun {
            return Some(Mark::End);
        }
        self.begun = true;
        Some(Mark::Begin)
    }

    /// The end of what was said.
    pub fn last_words(&self) -> String {
        let from = self.text.len().saturating_sub(LAST_WORDS);
        format!("{:?}", String::from_utf8_lossy(&self.text[from..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(begin: Option<&str>) -> Guest {
        Guest {
            name: "test".into(),
            kernel: Vec::new(),
            initrd: None,
            command_line: String::new(),
            memory_bytes: 0,
            begin: begin.map(str::to_owned),
            end: "END".into(),
        }
    }

    #[test]
    fn marks_are_found_in_their_order_however_the_text_is_cut() {
        let guest = guest(Some("BEGIN"));
        for cut in 0..18 {
            let mut console = Console::new(&guest);
            let mut found = Vec::new();
            let text = b"END of BEGIN, EN, END";
            for part in [&text[..cut], &text[cut..]] {
                console.say(part);
                while let Some(mark) = console.mark() {
                    found.push(mark);
                    if mark == Mark::End {
                        break;
                    }
                }
            }
            assert_eq!(found, [Mark::Begin, Mark::End], "cut at {cut}");
        }
    }

    #[test]
    fn without_a_beginning_the_end_is_awaited_at_once() {
        let guest = guest(None);
        let mut console = Console::new(&guest);
        console.say(b"END");
        assert_eq!(console.mark(), Some(Mark::End));
    }
}
