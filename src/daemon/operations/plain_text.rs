//! The metrics in Prometheus' older text format, for programs that ask for `text/plain`.

use std::fmt::Write;

/// The content type of [`plain_text`].
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether an `Accept` header asks for plain text rather than OpenMetrics.
pub(super) fn is_asked_for(accept: Option<&str>) -> bool {
    let accept = accept.unwrap_or_default();
    let has = |kind: &str| {
        accept.split(',').any(|part| part.split(';').next().is_some_and(|name| name.trim() == kind))
    };
    !has("application/openmetrics-text") && (has("text/plain") || has("text/*") || has("text/html"))
}

/// OpenMetrics text in the text format 0.0.4: counters and infos are declared by the names of their
/// samples, and the end is not marked.
pub(super) fn plain_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap_or((declared, "untyped"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            // Writing to a String does not fail.
            if let Some((_, words)) = help.take().filter(|(described, _)| *described == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {words}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_infos_are_declared_by_the_names_of_their_samples() {
        let openmetrics = "# HELP c_calls Calls.\n# TYPE c_calls counter\nc_calls_total{key=\"a\"} 2\n# HELP c_build What runs.\n# TYPE c_build info\nc_build_info{version=\"1\"} 1\n# TYPE c_up gauge\n# UNIT c_up ratio\nc_up 1\n# EOF\n";
        let plain = "# HELP c_calls_total Calls.\n# TYPE c_calls_total counter\nc_calls_total{key=\"a\"} 2\n# HELP c_build_info What runs.\n# TYPE c_build_info gauge\nc_build_info{version=\"1\"} 1\n# TYPE c_up gauge\nc_up 1\n";
        assert_eq!(plain_text(openmetrics), plain);
    }

    #[test]
    fn plain_text_is_for_those_who_ask_for_it_and_not_for_openmetrics() {
        for (accept, plain) in [
            (None, false),
            (Some("*/*"), false),
            (Some("text/plain"), true),
            (Some("text/html,application/xhtml+xml,*/*;q=0.8"), true),
            (Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), false),
            (Some("text/plain;version=0.0.4;q=0.5, */*;q=0.1"), true),
        ] {
            assert_eq!(is_asked_for(accept), plain, "{accept:?}");
        }
    }
}
