{{/*
The common parts of the pods of `helm test` and of the CronJob. The pods of `helm test` are deleted unless they failed. The label `app` admits both to etcd
(see networkpolicy.yaml).
*/}}

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

{{/* A container that runs etcdctl: (dict "root" . "name" "by-name" "endpoints" "http://host:2379" "command" (list "endpoint" "health")), a "user" of `name` and `key`, and a "timeout" */}}
{{- define "lattice.etcdctl" -}}
{{- $root := .root -}}
{{- $user := default (dict "name" (first $root.Values.auth.users).name "key" (first $root.Values.auth.users).name) .user -}}
- name: {{ .name }}
  image: {{ include "lattice.image" $root | quote }}
  imagePullPolicy: {{ $root.Values.imagePullPolicy }}
  command: ["etcdctl"]
  args:
    {{- concat .command (list (printf "--endpoints=%s" .endpoints) "--dial-timeout=20s" (printf "--command-timeout=%s" (default "30s" .timeout))) | toYaml | nindent 4 }}
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
          key: {{ $user.key }}
    - name: ETCDCTL_USER
      value: {{ printf "%s:$(PASSWORD)" $user.name | quote }}
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
