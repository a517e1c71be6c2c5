{{/* What the pods of `helm test` have in common. They exist only while it runs, and stay when they failed. */}}

{{- define "lattice.testLabels" -}}
{{- $labels := include "lattice.labels" . | fromYaml -}}
{{- $_ := set $labels "app" (printf "%s-test" (include "lattice.name" .)) -}}
{{- toYaml $labels -}}
{{- end -}}

{{- define "lattice.testAnnotations" -}}
helm.sh/hook: test
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- with .Values.tests.annotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "lattice.testPod" -}}
restartPolicy: Never
automountServiceAccountToken: false
{{- include "lattice.podSecurityContext" . | nindent 0 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* (list root "by-name" "http://host:2379") */}}
{{- define "lattice.testEtcdctl" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 }}
  image: {{ include "lattice.image" $root | quote }}
  imagePullPolicy: {{ $root.Values.imagePullPolicy }}
  command: ["etcdctl"]
  args: ["endpoint", "health", {{ printf "--endpoints=%s" (index . 2) | quote }}, "--dial-timeout=20s", "--command-timeout=30s"]
  {{- if or $root.Values.tls.client.enabled $root.Values.auth.enabled }}
  env:
    {{- if $root.Values.tls.client.enabled }}
    - name: ETCDCTL_CACERT
      value: /etc/lattice-rdzv/tls/client/ca.crt
    {{- if $root.Values.tls.client.requireClientCert }}
    - name: ETCDCTL_CERT
      value: /etc/lattice-rdzv/tls/client/tls.crt
    - name: ETCDCTL_KEY
      value: /etc/lattice-rdzv/tls/client/tls.key
    {{- end }}
    {{- end }}
    {{- if $root.Values.auth.enabled }}
    - name: PASSWORD
      valueFrom:
        secretKeyRef:
          name: {{ $root.Values.auth.existingSecret }}
          key: {{ (first $root.Values.auth.users).name }}
    - name: ETCDCTL_USER
      value: {{ printf "%s:$(PASSWORD)" (first $root.Values.auth.users).name | quote }}
    {{- end }}
  {{- end }}
  # A namespace with a quota admits no pod without requests and limits.
  resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {cpu: "1", memory: 128Mi}}
  {{- include "lattice.containerSecurityContext" $root | nindent 2 }}
  {{- if $root.Values.tls.client.enabled }}
  volumeMounts:
    - name: client-tls
      mountPath: /etc/lattice-rdzv/tls/client
      readOnly: true
  {{- end }}
{{- end -}}
