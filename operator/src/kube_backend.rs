//! Kube
