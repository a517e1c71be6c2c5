{{/* The security contexts of pods and containers: the values, except for parts that the cluster does not admit. */}}

{{/*
OpenShift assigns users and groups from a range of the namespace, and its policy `restricted-v2` rejects fixed ones. On OpenShift, the chart
omits its defaults. Values that differ from the defaults are kept.
*/}}
{{- define "lattice.podSecurityContext" -}}
{{- $context := deepCopy (.Values.podSecurityContext | default dict) -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1" -}}
{{- range $key := list "runAsUser" "runAsGroup" "fsGroup" -}}
{{- if eq (get $context $key | toString | float64) 10001.0 -}}{{- $context = omit $context $key -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if semverCompare "<1.20-0" .Capabilities.KubeVersion.Version -}}{{- $context = omit $context "seccompProfile" -}}{{- end -}}
{{- with $context -}}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "lattice.containerSecurityContext" -}}
{{- with .Values.containerSecurityContext -}}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* The Secret with a certificate: your Secret, or the Secret of the Certificate that this chart creates. (dict "root" . "side" "client") */}}
{{- define "lattice.tlsSecret" -}}
{{- (index .root.Values.tls .side).existingSecret | default (printf "%s-%s-tls" (include "lattice.name" .root) .side) -}}
{{- end -}}

{{/* How clients are served, in words. */}}
{{- define "lattice.clientProtection" -}}
{{- if not .Values.tls.client.enabled }}plain HTTP{{ else if .Values.tls.client.requireClientCert }}mTLS{{ else }}TLS{{ end -}}
{{- end -}}

{{/* Whether clients without a certificate or a password are rejected. */}}
{{- define "lattice.closed" -}}
{{- if or .Values.auth.enabled (and .Values.tls.client.enabled .Values.tls.client.requireClientCert) -}}true{{- end -}}
{{- end -}}
