//! Makes text of other processes safe to print. Otherwise a name could move the cursor of the terminal that shows it,
//! or be mistaken for a line of a log.

use std::{borrow::Cow, fmt::Write};

/// The text with its control characters, and the characters that change the direction of text, written as escapes.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) {
            // Writing to a text cannot fail.
            let _ = write!(safe, "{}", character.escape_unicode());
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_terminal_obeys_is_escaped() {
        for (text, expected) in [
            ("node-1 (käse) 节点", "node-1 (käse) 节点"),
            ("a\nERROR b", "a\\u{a}ERROR b"),
            ("\x1b[2Jgone", "\\u{1b}[2Jgone"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}fdp.exe", "\\u{202e}fdp.exe"),
        ] {
            assert_eq!(printable(text), expected);
            assert_eq!(printable(&printable(text)), expected, "an escape is left as it is");
        }
    }
}
