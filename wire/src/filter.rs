//! Filters of captures as text, in the language of libpcap (pcap-filter(7)): where in a text an error stands. Both sides look: the
//! controller when somebody asks, and the probe before it captures.
//!
//! It must not know libpcap: whether a text compiles is asked of a function.
//!
//! **Invariant:** looking for the place of an error looks up no names.

use core::fmt;

/// A filter that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterError {
    /// The text.
    pub filter: String,
    /// libpcap's words.
    pub reason: String,
    /// Where, as far as that can be told.
    pub place: Option<Place>,
}

impl fmt::Display for FilterError {
    /// What is wrong, and below the filter a mark at its place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { filter, reason, place } = self;
        let Some(Place { at, word }) = place else { return write!(f, "filter `{filter}`: {reason}") };
        match word.as_str() {
            "" => writeln!(f, "filter ends too early, after character {at}: {reason}")?,
            word => writeln!(f, "filter is wrong at character {}, `{word}`: {reason}", at + 1)?,
        }
        write!(f, "  {filter}\n  {:at$}^", "")
    }
}

impl std::error::Error for FilterError {}

/// Looks whether a filter compiles: `compile` is given a text, and whether it is the filter itself, in which names may be looked up; it
/// gives libpcap's words where the text does not compile.
///
/// # Errors
/// It does not.
pub fn check(filter: &str, compile: impl Fn(&str, bool) -> Result<(), String>) -> Result<(), FilterError> {
    compile(filter, true).map_err(|reason| {
        let place = place(filter, &reason, |text| compile(text, false).is_ok());
        FilterError { filter: filter.to_owned(), reason, place }
    })
}

/// Where a filter goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Characters in front of it.
    pub at: usize,
    /// The word; empty where the text ends too early.
    pub word: String,
}

/// What may follow the beginning of a filter: with one of these behind it, whatever is right so far compiles.
const COMPLETIONS: [&str; 18] = [
    "",
    "ip",
    "80",
    "1-2",
    "port 80",
    "127.0.0.1",
    "host 127.0.0.1",
    "10.0.0.0/8",
    "net 10.0.0.0/8",
    "2001:db8::1",
    "host 2001:db8::1",
    "00:00:00:00:00:01",
    "host 00:00:00:00:00:01",
    "broadcast",
    "= 0",
    "1 = 0",
    "] = 0",
    "0] = 0",
];
/// Longer filters are not looked through.
const MOST_WORDS: usize = 128;

/// Finds where `filter` goes wrong: the first word with which nothing that follows could make it right. libpcap says what is wrong,
/// but not where; so beginnings of the text are tried with `compiles`, which must not look up names.
///
/// `message` is libpcap's: a word that it quotes is the place.
pub fn place(filter: &str, message: &str, compiles: impl Fn(&str) -> bool) -> Option<Place> {
    let words = words(filter);
    let found = |(at, word): &(usize, &str)| Place { at: filter.get(..*at).unwrap_or_default().chars().count(), word: (*word).to_owned() };
    // Where the text is grammar, but a name is unknown, libpcap says the name.
    if !message.contains("syntax error") {
        let said = words.iter().filter(|(_, word)| word.len() > 1 && says(message, word));
        // Beside a wrong name or number libpcap also says what it should be that of.
        let quoted = |word: &str| message.contains(&format!("'{word}'")) || message.contains(&format!("\"{word}\""));
        let has_digit = |word: &str| word.chars().any(|c| c.is_ascii_digit());
        if let Some(word) = said.min_by_key(|(at, word)| (!quoted(word), !has_digit(word), *at)) {
            return Some(found(word));
        }
    }
    if words.len() > MOST_WORDS {
        return None;
    }
    let could_be = |count: usize| {
        let taken = words.get(..count).unwrap_or_default();
        let text = taken.iter().enumerate().map(|(n, (_, word))| stand_in(taken, n, word)).collect::<Vec<_>>().join(" ");
        let open = taken.iter().filter(|(_, word)| *word == "(").count();
        let closed = taken.iter().filter(|(_, word)| *word == ")").count();
        let close = " )".repeat(open.saturating_sub(closed));
        COMPLETIONS.iter().any(|completion| compiles(&format!("{text} {completion}{close}")))
    };
    let wrong = (1..=words.len()).find(|count| !could_be(*count));
    match wrong {
        Some(count) => words.get(count - 1).map(found),
        None => Some(Place { at: filter.trim_end().chars().count(), word: String::new() }),
    }
}

/// Whether `message` has `word` as a word of its own.
fn says(message: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    message.split(|c: char| !part(c)).any(|said| said == word)
}

/// A name of a host would be looked up: an address stands in for it.
fn stand_in<'a>(words: &[(usize, &'a str)], n: usize, word: &'a str) -> &'a str {
    let before = n.checked_sub(1).and_then(|n| words.get(n)).map_or("", |(_, word)| *word);
    let named = word.chars().any(char::is_alphabetic) && !word.contains(':');
    if named && (matches!(before, "host" | "gateway") || word.contains('.')) { "127.0.0.1" } else { word }
}

/// Words and signs with their places, in bytes.
fn words(filter: &str) -> Vec<(usize, &str)> {
    let kind = |c: char| match c {
        c if c.is_whitespace() => 0,
        '(' | ')' | '[' | ']' => 1,
        '<' | '>' | '=' | '!' | '&' | '|' | '+' | '*' | '^' | '%' => 2,
        _ => 3,
    };
    let mut words: Vec<(usize, &str)> = Vec::new();
    let mut begun: Option<(usize, u8)> = None;
    for (at, c) in filter.char_indices().chain([(filter.len(), ' ')]) {
        let now = kind(c);
        // Brackets stand alone, whatever is beside them.
        if let Some((start, before)) = begun
            && (before != now || now == 1)
        {
            words.extend(filter.get(start..at).map(|word| (start, word)));
            begun = None;
        }
        if now != 0 && begun.is_none() {
            begun = Some((at, now));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_have_places() {
        assert_eq!(words("tcp[13]&2 != 0"), [(0, "tcp"), (3, "["), (4, "13"), (6, "]"), (7, "&"), (8, "2"), (10, "!="), (13, "0")]);
        assert_eq!(words("((ip))"), [(0, "("), (1, "("), (2, "ip"), (4, ")"), (5, ")")]);
        assert_eq!(words("  "), []);
    }

    #[test]
    fn names_are_not_looked_up() {
        let asked = std::cell::RefCell::new(Vec::new());
        place("host printer and gateway x and host a.example prot", "syntax error", |text| {
            asked.borrow_mut().push(text.to_owned());
            !text.contains("prot")
        });
        assert!(asked.borrow().iter().all(|text| !text.contains("printer") && !text.contains("example")), "{asked:?}");
    }

    #[test]
    fn a_name_that_is_quoted_is_the_place() {
        let found = place("tcp port 80 and host nosuch", "unknown host 'nosuch'", |_| panic!("nothing is tried"));
        assert_eq!(found, Some(Place { at: 21, word: "nosuch".into() }));
    }

    proptest! {
        #[test]
        fn any_text_has_a_place_or_none(text in ".{0,40}", message in ".{0,20}") {
            if let Some(place) = place(&text, &message, |_| false) {
                prop_assert!(place.at <= text.chars().count());
            }
        }
    }
}
