//! Splits Rust into code and comments, line for line, so that a rule about code does not see strings.

/// Two copies of a file with everything else blanked out. Lines and columns stay in place.
#[derive(Debug, Default)]
pub(super) struct Views {
    /// No comments, no contents of strings and characters.
    pub(super) code: String,
    /// Comments only.
    pub(super) comments: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

impl Views {
    pub(super) fn of(text: &str) -> Self {
        let mut views = Self::default();
        let mut rest = text;
        let mut before = ' ';
        while let Some(first) = rest.chars().next() {
            let (kind, length) = token(rest, first, before);
            let (token, after) = rest.split_at(length);
            for c in token.chars() {
                let keep = |wanted| if kind == wanted || c == '\n' { c } else { ' ' };
                views.code.push(keep(Kind::Code));
                views.comments.push(keep(Kind::Comment));
                before = c;
            }
            rest = after;
        }
        views
    }
}

/// What comes next and how long it is, in bytes.
fn token(rest: &str, first: char, before: char) -> (Kind, usize) {
    let in_word = before.is_alphanumeric() || before == '_';
    if rest.starts_with("//") {
        (Kind::Comment, rest.find('\n').unwrap_or(rest.len()))
    } else if rest.starts_with("/*") {
        (Kind::Comment, block_comment(rest))
    } else if first == '"' {
        (Kind::Literal, string(rest))
    } else if first == '\'' {
        match character(rest) {
            Some(length) => (Kind::Literal, length),
            None => (Kind::Code, 1),
        }
    } else if let Some(length) = raw_string(rest).filter(|_| !in_word) {
        (Kind::Literal, length)
    } else {
        (Kind::Code, first.len_utf8())
    }
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `'a'` and `'\n'`, but not a lifetime.
fn character(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        chars.next()?;
        return rest[3..].find('\'').map(|end| end + 4);
    }
    let (end, last) = chars.next()?;
    (last == '\'').then_some(end + 1)
}

/// `r"..."`, `r#"..."#`, and the same with b or c before it.
fn raw_string(rest: &str) -> Option<usize> {
    let start = rest.strip_prefix(['b', 'c']).unwrap_or(rest).strip_prefix('r')?;
    let hashes = start.len() - start.trim_start_matches('#').len();
    let body = start[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let head = rest.len() - body.len();
    Some(body.find(&end).map_or(rest.len(), |at| head + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::Views;

    #[test]
    fn strings_and_comments_are_no_code() {
        let cases = [
            ("a // b\nc", "a     \nc", "  // b\n "),
            ("a /* b /* c */ d */ e", "a                   e", "  /* b /* c */ d */  "),
            (r#"f("x // \" y") // z"#, "f(           )     ", "               // z"),
            ("r#\"a\"b\"# + c", "         + c", "            "),
            ("x: &'a str = '\\'';", "x: &'a str =     ;", "                  "),
            ("var\"s\"", "var   ", "      "),
        ];
        for (text, code, comments) in cases {
            let views = Views::of(text);
            assert_eq!((views.code.as_str(), views.comments.as_str()), (code, comments), "{text}");
        }
    }
}
