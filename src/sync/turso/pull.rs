//! `/pull-updates`.
