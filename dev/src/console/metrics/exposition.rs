//! Parser of samples in Prometheus' text format.
//!
//! The `prometheus-parse` crate is not used, because it ends the labels at the first `}`. The label `path` contains a
//! `}` if the route has a parameter, such as `/v1/things/{id}`.
use super::Labels;

/// The label that holds the name of the metric, as in Prometheus.
pub(super) const NAME: &str = "__name__";

/// Returns the samples of a text: the unparsed name and labels of a series, and its value.
pub(super) fn samples(text: &str) -> impl Iterator<Item = (&str, f64)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (head, rest) = match line.rfind('}') {
            Some(end) => line.split_at(end + 1),
            None => line.split_once(' ')?,
        };
        // A timestamp may follow the value.
        Some((head, rest.split_whitespace().next()?.parse().ok()?))
    })
}

/// Parses the labels of a series, including its name. Returns `None` for an invalid text.
pub(super) fn labels(head: &str) -> Option<Labels> {
    let (name, mut rest) = head.split_once('{').unwrap_or((head, "}"));
    let mut labels = Labels::from([(NAME.to_owned(), name.trim().to_owned())]);
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if rest == "}" {
            return Some(labels);
        }
        let (label, quoted) = rest.split_once("=\"")?;
        let (value, after) = split_at_quote(quoted)?;
        labels.insert(label.trim().to_owned(), value);
        rest = after;
    }
}

/// Splits the text at the closing quote, into the unescaped value and the rest.
fn split_at_quote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_can_have_any_characters() {
        let text = concat!(
            "# HELP http_requests_total Requests.\n",
            "http_requests_total{path=\"/v1/things/{id}\",status=\"200\"} 7\n",
            "odd{text=\"a \\\"quote\\\", a \\\\ and a \\n\"} +Inf 1700000000\n",
            "up 1\n",
            "broken\n",
        );
        let read: Vec<_> = samples(text).map(|(head, value)| (labels(head).unwrap(), value)).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].0["path"], "/v1/things/{id}");
        assert_eq!((read[0].0[NAME].as_str(), read[0].1), ("http_requests_total", 7.0));
        assert_eq!(read[1].0["text"], "a \"quote\", a \\ and a \n");
        assert!(read[1].1.is_infinite());
        assert_eq!(read[2].0, Labels::from([(NAME.to_owned(), "up".to_owned())]));
    }
}
